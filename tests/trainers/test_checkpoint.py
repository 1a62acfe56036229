"""Checkpoints: whole or not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stoplab_platform.errors import CheckpointError
from stoplab_trainers.checkpoint import Saved, latest, load, load_weights, save, weights_sha256

MINE = {"run": "abc"}


def state(number: int = 0) -> dict[str, Any]:
    layer = torch.nn.Linear(3, 2)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, number)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "record": {"init": "x", "digests": {"crops": ["a", "b"]}},
    }


def saved(folder: Path, step: int, keep: int = 10) -> Path:
    return Path(str(save(folder, step=step, tensors=state(step), identity=MINE, keep=keep)))


def newest(folder: Path) -> Path:
    found = latest(folder)
    assert isinstance(found, Saved)
    return Path(str(found))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def spoil(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "deep" / "folder", 120)
    assert path.name == "step-00000120"
    step, found = load(path, identity=MINE)
    assert step == 120
    expected = state(120)
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    moments = [s["optimizer"]["state"][0]["exp_avg"] for s in (found, expected)]
    assert torch.equal(*moments)
    assert found["record"] == expected["record"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["identity"]) == (120, MINE)
    assert manifest["size"] == (path / "state.pt").stat().st_size


@pytest.mark.invariant(22)
def test_weights_alone_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {**state(1), "target": state(2)["model"]}
    path = save(tmp_path, step=7, tensors=whole, identity=MINE, keep=1)
    reading = torch.load

    def mapped(*args: Any, mmap: bool, **options: Any) -> Any:
        assert mmap
        return reading(*args, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", mapped)
    step, weights = load_weights(path)
    assert (step, weights.keys()) == (7, {"model", "target"})
    for part in ("model", "target"):
        assert torch.equal(weights[part]["weight"], whole[part]["weight"])


def test_latest_is_the_newest_whole_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest(tmp_path / "nothing") is None
    for step in (9, 100, 20):
        saved(tmp_path, step)
    assert newest(tmp_path) == tmp_path / "step-00000100"
    spoil(tmp_path / "step-00000100")
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == tmp_path / "step-00000020"
    assert "step-00000100/state.pt does not match its checksum" in caplog.text


@pytest.mark.parametrize("harm", ["flipped", "cut", "no state", "no manifest", "not JSON", "empty"])
@pytest.mark.invariant(22)
def test_any_harm_is_noticed(harm: str, tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    match harm:
        case "flipped":
            spoil(path)
        case "cut":
            os.truncate(path / "state.pt", 100)
        case "no state":
            (path / "state.pt").unlink()
        case "no manifest":
            (path / "manifest.json").unlink()
        case "not JSON":
            (path / "manifest.json").write_text("{")
        case "empty":
            (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-00000005"):
        load(path, identity=MINE)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is broken"):
        latest(tmp_path)


def test_another_runs_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"belongs to run abc, this run is run xyz"):
        load(path, identity={"run": "xyz"})
    assert load(path, identity=None)[0] == 5


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harmed"),)

    path = save(tmp_path, step=1, tensors={"model": Harm()}, identity=MINE, keep=1)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(path, identity=MINE)
    assert not (tmp_path / "harmed").exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        saved(tmp_path, step, keep=3)
        assert steps(tmp_path) == list(range(max(1, step - 2), step + 1))


def test_going_back_behind_a_broken_one_never_loses_what_is_saved_then(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        saved(tmp_path, step)
    spoil(tmp_path / "step-00000030")
    assert newest(tmp_path) == tmp_path / "step-00000020"
    saved(tmp_path, 25, keep=1)
    assert steps(tmp_path) == [25], "the broken later one goes, not the new one"
    saved(tmp_path, 40)
    saved(tmp_path, 35, keep=1)
    assert steps(tmp_path) == [35, 40], "a whole later one stays"


def test_a_step_saved_again_is_kept_if_whole_and_replaced_if_broken(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    before = (path / "state.pt").stat().st_mtime_ns
    assert saved(tmp_path, 5) == path
    assert (path / "state.pt").stat().st_mtime_ns == before
    spoil(path)
    assert load(saved(tmp_path, 5), identity=MINE)[0] == 5


def test_a_step_that_another_process_wrote_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an attempt may that does not know yet that it was replaced."""
    saved(tmp_path / "theirs", 5)
    rename = Path.rename

    def late(draft: Path, target: Path) -> Path:
        shutil.copytree(tmp_path / "theirs" / "step-00000005", target)
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", late)
    path = saved(tmp_path / "ours", 5)
    assert "was written by another process" in caplog.text
    assert load(path, identity=MINE)[0] == 5
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would begin anew."""
    saved(tmp_path, 5)

    def refused(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        latest(tmp_path)


STAGES = ("torch.save", "os.fsync", "json.dump", "Path.rename")
KILLED = """
import json, os, signal, sys, torch
from pathlib import Path
from stoplab_trainers.checkpoint import save
for stage in sys.argv[2:]:
    if os.fork() == 0:
        owner, _, name = stage.partition(".")
        kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        setattr(dict(torch=torch, os=os, json=json, Path=Path)[owner], name, kill)
        save(Path(sys.argv[1]) / stage, step=2, tensors={}, identity={}, keep=9)
    assert os.wait()[1] == signal.SIGKILL
"""


def test_a_save_that_is_killed_leaves_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    """Kill -9 in the middle of a save, at each of its stages."""
    for stage in STAGES:
        saved(tmp_path / stage, 1)
    command = [sys.executable, "-c", KILLED, str(tmp_path), *STAGES]
    subprocess.run(command, timeout=120, check=True)
    for stage in STAGES:
        folder = tmp_path / stage
        assert newest(folder) == folder / "step-00000001"
        assert list(folder.glob(".step-*")), "killed with a draft on the disk"
        saved(folder, 3)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["step-00000001", "step-00000003"]


def test_a_full_disk_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 2)
    assert steps(tmp_path) == [1]
    assert list(tmp_path.glob(".*")) == []


def test_the_disk_has_everything_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    saved(tmp_path, 1)
    draft = order[2]
    assert draft.startswith(".step-00000001.")
    assert order == ["state.pt", "manifest.json", draft, "rename", tmp_path.name]


def test_the_hash_of_weights_sees_names_types_shapes_and_values() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    same = {"b": weights["b"].clone(), "a": weights["a"].T.contiguous().T}
    assert weights_sha256(weights) == weights_sha256(same)
    others = [
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(3, 2), "b": weights["b"]},
        {"a": weights["a"].double(), "b": weights["b"]},
        {"a": weights["a"] + 1e-6, "b": weights["b"]},
        {"a": weights["a"].bfloat16(), "b": weights["b"]},
        {"a": weights["a"]},
    ]
    hashes = {weights_sha256(other) for other in [weights, *others]}
    assert len(hashes) == 7


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "step-old").mkdir(parents=True)
    (folder / "step-00000009").write_text("a file")
    saved(folder, 1, keep=1)
    saved(folder, 2, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000002",
        "step-00000009",
        "step-old",
    ]
    shutil.rmtree(folder / "step-00000002")
    assert latest(folder) is None
