"""`model.init_from`: every kind of weights starts a run, and the run knows which they were."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from stoplab_platform.errors import CheckpointError, DataError, DataMissing, SpecError, Stopped
from stoplab_platform.paths import RunFolder
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.weights import Start
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.launch import execute
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, build_model, target_of
from stoplab_trainers.resuming import begin
from stoplab_trainers.weights.official import to_official
from stoplab_trainers.weights.start import start_from
from support_runs import folder, identity, tiny
from support_weights import saved


def source(**changes: Any) -> tuple[Jepa, Encoder]:
    """A model and a target that no run begins with."""
    model = build_model(tiny(seed=7, **changes))
    target = build_model(tiny(seed=8, **changes)).encoder.requires_grad_(False)
    return model, target


def own_checkpoint(root: Path, **changes: Any) -> Path:
    model, target = source(**changes)
    state = {"model": model.state_dict(), "target": target.state_dict()}
    before = folder(root, "before").checkpoints
    made = checkpoint.save(before, step=5, tensors=state, identity={"run": "x"}, keep=3)
    return Path(str(made))


def run_folder(root: Path) -> Path:
    return own_checkpoint(root).parent.parent


def official_file(root: Path, **changes: Any) -> Path:
    path = root / "ep600.pth.tar"
    parts = to_official(*source(**changes))
    wrapped = {p: {f"module.{n}": v for n, v in w.items()} for p, w in parts.items()}
    torch.save({**wrapped, "opt": None, "epoch": 600}, path)
    return path


def encoder_weights(**changes: Any) -> dict[str, torch.Tensor]:
    return to_official(*source(**changes))["target_encoder"]


def timm_torch(root: Path) -> Path:
    torch.save(encoder_weights(), root / "encoder.pth")
    return root / "encoder.pth"


def timm_safetensors(root: Path) -> Path:
    save_file(encoder_weights(), root / "encoder.safetensors")
    return root / "encoder.safetensors"


KINDS = {
    "checkpoint": own_checkpoint,
    "run": run_folder,
    "official": official_file,
    "torch": timm_torch,
    "safetensors": timm_safetensors,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_a_step(kind: str, tmp_path: Path) -> None:
    place = KINDS[kind](tmp_path)
    spec = tiny(model__init_from=str(place), evals=[])
    run = Run(spec, ShardSet.open("digits", tmp_path / "home" / "cache"))
    drawn = build_model(spec).predictor.state_dict()
    start_from(Start(path=str(place)), run.model, run.target)
    model, target = source()
    whole = kind not in ("torch", "safetensors")
    student = model.encoder if whole else target
    assert equal(run.model.encoder.state_dict(), student.state_dict())
    assert equal(run.target.state_dict(), target.state_dict())
    expected = model.predictor.state_dict() if whole else drawn
    assert equal(run.model.predictor.state_dict(), expected)
    (report,) = islice(steps(run), 1)
    assert report.step == 1
    assert not equal(run.model.encoder.state_dict(), student.state_dict())


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_image_may_have_another_size(tmp_path: Path) -> None:
    for made in (official_file, own_checkpoint):
        place = made(tmp_path, data__image_size=24)
        model = build_model(tiny())
        table = model.encoder.vit.pos_embed.clone()
        start_from(Start(path=str(place)), model, target_of(model.encoder))
        assert torch.equal(model.encoder.vit.pos_embed, table)
        assert torch.equal(model.encoder.vit.norm.weight, source()[0].encoder.vit.norm.weight)
        proj = source()[0].encoder.vit.patch_embed.proj.weight
        assert torch.equal(model.encoder.vit.patch_embed.proj.weight, proj)


@pytest.mark.parametrize("made", [own_checkpoint, official_file])
def test_other_sizes_are_told_before_any_step(made: Callable[..., Path], tmp_path: Path) -> None:
    place = made(tmp_path, model__width=24, model__depth=2)
    with pytest.raises(SpecError) as error:
        execute(run_from(place), folder(tmp_path), identity())
    said = str(error.value)
    assert said.startswith(f"1 problem(s) in the spec:\n  model.init_from: {place}: ")
    assert "norm.weight [24] (here [16])" in said
    assert "unknown: " in said
    assert "blocks.1.attn.qkv.bias" in said
    assert not folder(tmp_path).checkpoints.exists()


def run_from(place: Path | str, **changes: Any) -> RunSpec:
    few = {"evals": [], "optim__epochs": 1, "optim__warmup_epochs": 0}
    return tiny(**{"model__init_from": str(place), **few, **changes})


def test_what_cannot_be_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny())
    target = target_of(model.encoder)

    def start(place: Path | str) -> None:
        start_from(Start(path=str(place)), model, target)

    where = rf"^model\.init_from on {platform.node()}: .*none\.pth does not exist$"
    with pytest.raises(DataMissing, match=where):
        start(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(SpecError, match="no file of weights that can be read safely"):
            start(tmp_path / name)
    torch.save({"a": 1, "b": 2}, tmp_path / "other.pth")
    with pytest.raises(SpecError, match="holds a, b: neither"):
        start(tmp_path / "other.pth")
    torch.save({"encoder": encoder_weights(), "predictor": {}}, tmp_path / "half.pth")
    with pytest.raises(SpecError, match="target_encoder: missing"):
        start(tmp_path / "half.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="no checkpoint in"):
        start(tmp_path / "empty")
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", str(tmp_path / "data"))
    with pytest.raises(DataError, match="STOPLAB_DATA_ROOTS"):
        start(tmp_path / "other.pth")


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"encoder": {}, "predictor": {}, "target_encoder": Path("x")}, tmp_path / "evil.pth")
    model = build_model(tiny())
    with pytest.raises(SpecError, match="read safely"):
        start_from(Start(path=str(tmp_path / "evil.pth")), model, target_of(model.encoder))


def test_a_url(tmp_path: Path) -> None:
    path = timm_safetensors(tmp_path)
    with fsspec.open("memory://weights/encoder.safetensors", "wb") as remote:
        remote.write(path.read_bytes())
    model = build_model(tiny())
    found = start_from(
        Start(path="memory://weights/encoder.safetensors"), model, target_of(model.encoder)
    )
    assert found.layout == "encoder"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(model.encoder.vit.norm.bias, encoder_weights()["norm.bias"])


def test_a_url_on_private_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Secrets(Settings()).set("bucket", '{"key": "k"}')
    given: list[dict[str, Any]] = []
    opening = fsspec.core.url_to_fs

    def opened(url: str, **options: Any) -> Any:
        given.append(options)
        return opening(url)

    with fsspec.open("memory://private/encoder.safetensors", "wb") as remote:
        remote.write(timm_safetensors(tmp_path).read_bytes())
    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    place = "memory://private/encoder.safetensors"
    spec = run_from(place, data__storage="secret://bucket")
    run = Run(spec, ShardSet.open("digits", tmp_path / "home" / "cache"))
    begin(run, folder(tmp_path), {"run": "x"}, None)
    assert {"key": "k"} in given


def test_a_run_by_its_job_where_its_folder_may_not_be_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = saved(home, "j_study", "stochastic-s0")
    saved(home, "j_study", "stochastic-s1")
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", str(tmp_path / "data"))
    model = build_model(tiny(seed=3))
    target = target_of(model.encoder)
    path = str(home / "jobs" / "j_study" / "runs" / "stochastic-s0")
    with pytest.raises(DataError, match="STOPLAB_DATA_ROOTS"):
        start_from(Start(path=path), model, target)
    with pytest.raises(SpecError, match="job j_study: j_study: name one of its runs"):
        start_from(Start(job="j_study"), model, target)
    found = start_from(Start(job="j_study", cell="stochastic-s0"), model, target)
    assert found.layout == "checkpoint"
    assert equal(model.state_dict(), state["model"])
    assert equal(target.state_dict(), state["target"])


@pytest.mark.parametrize("kind", ["checkpoint", "official", "torch"])
def test_the_optimisers_state_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, mapped = KINDS[kind](tmp_path), list[bool]()
    reading = torch.load

    def load(*args: Any, **options: Any) -> Any:
        mapped.append(options.get("mmap", False))
        return reading(*args, **options)

    monkeypatch.setattr(torch, "load", load)
    model = build_model(tiny())
    start_from(Start(path=str(place)), model, target_of(model.encoder))
    assert mapped == [True]


def test_a_file_of_an_old_torch(tmp_path: Path) -> None:
    torch.save(encoder_weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = build_model(tiny())
    start_from(Start(path=str(tmp_path / "old.pth")), model, target_of(model.encoder))
    assert torch.equal(model.encoder.vit.norm.bias, encoder_weights()["norm.bias"])


def test_two_files_at_one_path_make_two_runs(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pth"
    found, shas = [], []
    for seed in (1, 2, 2):
        weights = to_official(*source())["encoder"]
        weights["norm.bias"] = torch.full_like(weights["norm.bias"], 0.01 * seed)
        torch.save(weights, path)
        found.append(execute(run_from(path), folder(tmp_path, f"r{len(found)}"), identity()))
        shas.append(hashlib.sha256(path.read_bytes()).hexdigest())
    one, two, again = found
    assert [run.facts["init_from"] for run in found] == shas
    assert two.facts["init_from"] == again.facts["init_from"] != one.facts["init_from"]
    assert two.run_digest == again.run_digest != one.run_digest
    assert two.weights_sha256 == again.weights_sha256 != one.weights_sha256
    assert two.certificate["init"] == again.certificate["init"] != one.certificate["init"]


def test_a_resumed_run_keeps_the_weights_it_began_from(tmp_path: Path) -> None:
    path = timm_torch(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    whole = execute(run_from(path), folder(tmp_path, "whole"), identity())
    stop, cut = tmp_path / "stop.json", folder(tmp_path, "cut")
    stop.write_text(json.dumps({"intent": "PAUSED"}))
    with pytest.raises(Stopped):
        execute(run_from(path), cut, identity(), stop_file=stop)
    stop.unlink()
    path.write_bytes(b"another file lies there now")
    resumed = execute(run_from(path), cut, identity(), stop_file=stop)
    assert resumed.facts["init_from"] == sha256
    assert resumed.run_digest == whole.run_digest
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.certificate == whole.certificate


def test_a_run_without_it_has_no_such_fact(tmp_path: Path) -> None:
    summary = execute(run_from("x", model__init_from=None), folder(tmp_path), identity())
    assert "init_from" not in summary.facts
    newest = checkpoint.latest(RunFolder(tmp_path / "run").checkpoints)
    assert newest is not None
    assert set(checkpoint.manifest(newest)["identity"]) == {"run"}


def test_weights_of_other_positions_do_not_fit(tmp_path: Path) -> None:
    place = own_checkpoint(tmp_path, positions__parametrization="official")
    model = build_model(tiny())
    with pytest.raises(SpecError, match=r"missing: predictor\.mask_token"):
        start_from(Start(path=str(place)), model, target_of(model.encoder))
    with pytest.raises(CheckpointError):
        checkpoint.meant(folder(tmp_path, "nothing"), None, str)
