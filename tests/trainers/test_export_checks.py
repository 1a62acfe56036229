"""Nothing is exported that does not compute what the checkpoint does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stoplab_platform.adoption import adopt_cells
from stoplab_platform.errors import CheckpointError
from stoplab_platform.exits import Exit
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.references import find
from stoplab_platform.settings import Settings
from stoplab_platform.specs.positions import PluginPositions
from stoplab_trainers import checkpoint
from stoplab_trainers.export import main
from stoplab_trainers.weights import onnx_encoder
from stoplab_trainers.weights.card import model_card
from stoplab_trainers.weights.checks import ExportFailed, probe_images
from stoplab_trainers.weights.official import write_official
from stoplab_trainers.weights.timm_encoder import checked
from stoplab_trainers.weights.trained import Trained, open_trained
from support_runs import tiny
from support_weights import saved

MAE = {"objective": "mae", "masking": {"kind": "random", "ratio": 0.75}}


def trained(job: str = "j_1") -> Trained:
    return open_trained(find(job, Settings()))


@torch.no_grad()
@pytest.mark.parametrize("gain", [1.0, 300.0])
def test_features_in_timm_are_equal_to_a_millionth_of_their_size(
    gain: float, home: Path, tmp_path: Path
) -> None:
    spec, state = saved(home, model__depth=3)
    state["target"]["vit.norm.weight"] *= gain
    run = JobFolder(home / "jobs" / "j_1").run("run")
    checkpoint.save(run.checkpoints, step=6, tensors=state, identity={}, keep=1)
    run_of = trained()
    size = float(run_of.target.features(probe_images(spec.data.image_size)).abs().max())
    for part, passes in ((3e-7, True), (3e-6, False)):
        weights = run_of.encoder
        weights["norm.bias"] = weights["norm.bias"] + part * size
        save_file(weights, tmp_path / "encoder.safetensors")
        if passes:
            checked(run_of, tmp_path / "encoder.safetensors")
        else:
            with pytest.raises(ExportFailed, match="timm: outputs differ"):
                checked(run_of, tmp_path / "encoder.safetensors")


@pytest.mark.parametrize("kind", ["timm", "official"])
def test_weights_that_are_no_numbers(
    kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state = saved(home)
    state["target"]["vit.norm.weight"].fill_(torch.nan)
    run = JobFolder(home / "jobs" / "j_1").run("run")
    checkpoint.save(run.checkpoints, step=6, tensors=state, identity={}, keep=1)
    assert main(["j_1", "--to", kind, "--out", str(tmp_path / "out")]) == Exit.FAILED
    assert not list((tmp_path / "out").iterdir())
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_exporters_own_error_is_one_line(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved(home)

    def fails(_trained: Trained) -> None:
        raise ValueError("no such operator\nand a long report")

    monkeypatch.setattr(onnx_encoder, "_exported", fails)
    assert main(["j_1", "--to", "onnx", "--out", str(tmp_path / "a.onnx")]) == Exit.FAILED
    assert capsys.readouterr().err == "onnx: ValueError: no such operator\n"


class TestOfficial:
    def test_it_is_read_back(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved(home)
        path = tmp_path / "checkpoint.pth"
        assert write_official(trained(), path) == 0.0
        reading = torch.load

        def other(*args: object, **options: object) -> dict[str, dict[str, torch.Tensor]]:
            found: dict[str, dict[str, torch.Tensor]] = reading(*args, **options)  # type: ignore[arg-type]
            found["predictor"]["predictor_norm.bias"] += 1
            return found

        run = trained()
        monkeypatch.setattr(torch, "load", other)
        with pytest.raises(ExportFailed, match=r"read back: predictor\.norm\.bias"):
            write_official(run, path)

    def test_no_warning_of_a_mask_token(
        self, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        saved(home)
        write_official(trained(), tmp_path / "checkpoint.pth")
        assert not caplog.records

    def test_what_it_cannot_mean(
        self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved(home, **MAE)
        out = tmp_path / "out"
        assert main(["j_1", "--to", "official", "--out", str(out)]) == Exit.FAILED
        assert "no objective 'mae'" in capsys.readouterr().err
        assert not list(out.iterdir())
        saved(home, "j_2")
        positions = PluginPositions.model_construct(kind="clipped", noise_std=0.25)
        run = trained("j_2")
        plugged = dataclasses.replace(
            run, spec=run.spec.model_copy(update={"positions": positions})
        )
        with pytest.raises(CheckpointError, match="plug-in 'clipped'"):
            write_official(plugged, out / "checkpoint.pth")


def test_adopted_runs_leave_without_the_job_that_trained_them(home: Path, tmp_path: Path) -> None:
    saved(home, "j_old", "stochastic-s0")
    old, new = JobFolder(home / "jobs" / "j_old"), JobFolder(home / "jobs" / "j_new")
    Ledger(old).plan([Cell(id="stochastic-s0", index=0, seed=0)])
    Ledger(old).update("stochastic-s0", state=CellState.SUCCEEDED)
    adopt_cells(old, new)
    shutil.rmtree(old.root)
    out = tmp_path / "encoder.safetensors"
    assert main(["j_new/stochastic-s0", "--to", "timm", "--out", str(out)]) == Exit.OK
    assert out.exists()


@pytest.mark.parametrize("named", [True, False])
def test_a_card_beside_a_named_file_bears_its_name(named: bool, home: Path, tmp_path: Path) -> None:
    saved(home)
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    out = tmp_path / "vit.safetensors" if named else tmp_path
    words = ["j_1", "--to", "safetensors", "--out", str(out)]
    assert main(words) == (Exit.OK if named else Exit.BAD_INPUT)
    assert main([*words, "--force"]) == Exit.OK
    assert (readme.read_text() == "mine") is named
    assert (tmp_path / "vit.README.md").exists() is named


@pytest.mark.parametrize(
    ("changes", "told", "tags"),
    [
        ({}, "EMA (target) encoder of a run of I-JEPA with stochastic positions (StoP: noise_std "
         "0.25, covariance learned, noise on masked)", "i-jepa, stop"),
        ({"positions__parametrization": "official"}, "as in the official code)", "i-jepa, stop"),
        ({"positions": {"kind": "deterministic"}}, "of I-JEPA (deterministic positions)", "i-jepa"),
        ({"positions__noise_std": 0}, "of I-JEPA (deterministic positions)", "i-jepa"),
        ({"positions": {"kind": "deterministic", "table": "learned"}},
         "of I-JEPA with deterministic positions (learned table)", "i-jepa"),
        ({"positions__noise_std": 0, "positions__parametrization": "official"},
         "of StoP without noise", "i-jepa"),
        ({"positions": {"kind": "deterministic", "parametrization": "official"}},
         "flag off (no mask token, so not I-JEPA)", "i-jepa"),
        ({**MAE, "positions": {"kind": "deterministic"}},
         "The encoder of a run of MAE with deterministic positions", "mae"),
        (MAE, "The encoder of a run of MAE with stochastic positions (StoP", "mae, stop"),
    ],
)  # fmt: skip
def test_the_card_names_the_method(
    changes: dict[str, object], told: str, tags: str, home: Path
) -> None:
    saved(home, **changes)
    card = model_card(trained(), "timm.create_model(…)", "encoder.safetensors")
    assert told in " ".join(card.split())
    assert f"tags: [image-feature-extraction, self-supervised, {tags}]\n" in card


def test_the_card_of_a_plug_ins_positions(home: Path) -> None:
    saved(home)
    positions = PluginPositions.model_construct(kind="clipped", noise_std=0.25)
    run = trained()
    plugged = dataclasses.replace(run, spec=tiny().model_copy(update={"positions": positions}))
    card = model_card(plugged, "timm.create_model(…)", "encoder.safetensors")
    assert "of I-JEPA with the positions `clipped` (a plug-in's, noise_std 0.25)" in " ".join(
        card.split()
    )
