"""The conformance check: the official recording, other sizes, and everything that must fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stoplab_trainers.conformance import TOLERANCES, main
from support_reference import record

GOLDEN = Path(__file__).parents[1] / "golden" / "reference.npz"


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def saved(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_command_prints_differences_of_the_official_recording() -> None:
    # A process of its own: run in this one, the module's checked bytecode would be left behind.
    command = [sys.executable, "-m", "stoplab_trainers.conformance", str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"ijepa", "stop", "passed"}
    assert report["passed"] is True
    for arm in ("ijepa", "stop"):
        assert list(report[arm]) == list(TOLERANCES)
        assert all(report[arm][item] <= most for item, most in TOLERANCES.items())


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (0, {}),
        (1, {"image_size": 20, "patch_size": 4, "width": 16, "heads": 4, "predictor_width": 8}),
        (2, {"depth": 4, "predictor_depth": 4, "noise_std": 1.5, "lr": 1e-4, "ema": 0.99}),
        (3, {"images": 5, "blocks": 1, "context": 9, "target": 4, "noise_std": 0}),
    ],
)
def test_other_sizes_agree_with_a_second_implementation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, changes: dict[str, Any]
) -> None:
    record(tmp_path / "other.npz", seed, **changes)
    assert main([str(tmp_path / "other.npz")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is True
    assert not printed.err


@pytest.mark.parametrize(
    "name",
    [
        "ijepa/predictions",
        "stop/loss",
        "stop/grad/predictor_embed.weight",
        "ijepa/five_losses",
        "stop/after_five/encoder.blocks.1.mlp.fc1.weight",
        "encoder/blocks.0.attn.qkv.weight",
        "predictor/predictor_proj.bias",
        "unit_noise",
        "images",
    ],
)
def test_any_changed_number_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arrays: dict[str, Any] = dict(record(tmp_path / "true.npz"))
    arrays["config"] = arrays_of(tmp_path / "true.npz")["config"]
    changed = arrays[name].copy()
    changed[...] = changed * 1.01
    assert main([saved(tmp_path / "changed.npz", arrays | {name: changed})]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_the_official_start_is_redrawn_only_where_its_end_confirms_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = arrays_of(GOLDEN)
    assert main([str(GOLDEN)]) == 0
    assert "redrawn by name" in capsys.readouterr().err
    slightly = arrays["predictor/predictor_proj.weight"] * 1.001
    changed = arrays | {"predictor/predictor_proj.weight": slightly}
    assert main([saved(tmp_path / "slightly.npz", changed)]) == 1
    unrelated = arrays | {"predictor/predictor_proj.weight": slightly + 0.1}
    assert main([saved(tmp_path / "unrelated.npz", unrelated)]) == 2
    assert "recorded after the training steps" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["config", "unit_noise", "encoder/", "stop/grad"])
def test_a_lacking_part_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    record(tmp_path / "whole.npz")
    rest = {k: v for k, v in arrays_of(tmp_path / "whole.npz").items() if not k.startswith(lost)}
    assert main([saved(tmp_path / "part.npz", rest)]) == 2
    assert lost in capsys.readouterr().err


def test_files_that_are_no_recording_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("no numbers here")
    np.save(tmp_path / "array.npy", np.zeros(3))
    record(tmp_path / "odd.npz")
    odd = arrays_of(tmp_path / "odd.npz")
    odd["target_index"] = odd["target_index"][0]
    for path in ("absent.npz", "text.npz", "array.npy", saved(tmp_path / "odd.npz", odd)):
        assert main([str(tmp_path / path)]) == 2
        printed = capsys.readouterr()
        assert printed.err
        assert not printed.out
