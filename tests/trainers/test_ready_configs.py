"""The ready specs: valid at full size, costed as their heads say, and each trains when small."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from stoplab_platform.estimates import estimate
from stoplab_platform.resources import Resources
from stoplab_platform.specs import RunSpec, SweepSpec, load_spec
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, steps

HOUSE = Path(__file__).parents[2]
CONFIGS = HOUSE / "trainers" / "configs"
ABLATIONS = sorted(CONFIGS.glob("ablations/*.yaml"))
BASELINES = sorted(CONFIGS.glob("baselines/*.yaml"))
PAPERS = [*ABLATIONS, *BASELINES, *sorted(CONFIGS.glob("published/*.yaml"))]
SIGMA_GRID = HOUSE / "sweeps" / "configs" / "sigma_grid.yaml"
PROBE = CONFIGS / "probe_imagenet.yaml"
FULL_SIZE = [*PAPERS, SIGMA_GRID, PROBE]
IMAGENET = 1_281_167
LAB = Resources(cpus=10_000, gpus=1_000)
COST = r"# Cost      about ([\d,]+) GPU-hours, ([\d,]+) to ([\d,]+) "
SMALL: dict[str, Any] = {
    "model.encoder": "custom", "model.width": 16, "model.depth": 1, "model.heads": 2,
    "model.patch_size": 4, "model.predictor.width": 16, "model.predictor.depth": 1,
    "model.predictor.heads": 2, "data.train": "digits", "data.eval": None, "data.image_size": 32,
    "data.loader_threads": 1, "masking.min_keep": 5, "optim.epochs": 2, "optim.batch_size": 128,
    "optim.warmup_epochs": 0.5, "compute.workers": 1, "compute.gpus_per_worker": 0,
}  # fmt: skip
QUICK = {"learned_positions", "low_res_max", "a_l1", "stop_mae_vitb16", "stop_vith14"}


def small(path: Path) -> RunSpec:
    """The spec of a file with all of its method, and nothing of its size."""
    given = load_spec(path)
    assert isinstance(given, RunSpec)
    changes = dict(SMALL)
    if given.masking.kind == "random":
        changes.pop("masking.min_keep")
    if given.optim.freeze_after_epoch:
        changes["optim.freeze_after_epoch"] = 1
    spec = load_spec(path, changes)
    assert isinstance(spec, RunSpec)
    method = ("objective", "positions", "seed")
    assert [getattr(spec, name) for name in method] == [getattr(given, name) for name in method]
    return spec


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_the_head_tells_source_result_and_what_the_estimate_says(path: Path) -> None:
    text = path.read_text()
    head = text[: text.index("\nkind: ")]
    assert all(word in head for word in ("# Published ", "# Command   stoplab submit ", "arXiv"))
    assert "Not run by us." in " ".join(head.replace("#", " ").split())
    assert str(path.relative_to(HOUSE)) in head
    trained = load_spec(CONFIGS / "published" / "stop_vitb16.yaml")
    assert isinstance(trained, RunSpec)
    told = estimate(load_spec(path), LAB, images=IMAGENET, trained=trained)
    assert told.gpu_hours is not None
    said = re.search(COST, head)
    assert said is not None
    value, low, high = (float(number.replace(",", "")) for number in said.groups())
    found = (told.gpu_hours.value, told.gpu_hours.low, told.gpu_hours.high)
    assert (value, low, high) == pytest.approx(found, rel=0.02, abs=0.5)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("ablations/*.yaml")), ids=lambda path: path.stem
)
def test_an_ablation_differs_from_its_base_in_its_method_alone(path: Path) -> None:
    base, spec = load_spec(CONFIGS / "ablations" / "noise_masked.yaml"), load_spec(path)
    assert isinstance(base, RunSpec)
    assert isinstance(spec, RunSpec)
    optim = spec.optim.model_copy(update={"a_penalty": None})
    alike = spec.model_copy(
        update={
            "name": base.name, "positions": base.positions, "objective": base.objective,
            "optim": optim,
        }
    )  # fmt: skip
    assert alike == base
    methods = {
        str((one.positions, one.objective, one.optim.a_penalty))
        for one in map(load_spec, ABLATIONS)
        if isinstance(one, RunSpec)
    }
    assert len(methods) == len(ABLATIONS), "no two are the same"


def test_the_grid_of_sigma_is_on_the_ablation_base() -> None:
    spec = load_spec(SIGMA_GRID)
    assert isinstance(spec, SweepSpec)
    assert spec.base == load_spec(CONFIGS / "ablations" / "noise_masked.yaml")
    assert 0.0 not in spec.space["positions.noise_std"].examples(), "there all covariances are one"


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_most_of_a_run_is_training(path: Path) -> None:
    """All GPUs wait while one judges: what takes long is left to a job of its own."""
    whole, bare = (
        estimate(load_spec(path, changes), LAB, images=IMAGENET).gpu_hours
        for changes in ({}, {"evals": []})
    )
    assert whole is not None
    assert bare is not None
    assert whole.value < 2 * bare.value


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in PAPERS
    ],
)
def test_each_trains_two_epochs_when_small(path: Path, digits: ShardSet) -> None:
    run = Run(small(path), digits)
    before = {name: one.detach().clone() for name, one in run.model.named_parameters()}
    reports = list(islice(steps(run), 1000))
    assert len(reports) == run.total_steps == 2 * (1257 // 128)
    first, last = (reports[at].metrics["train/loss"] for at in (0, -1))
    assert last < 0.9 * first, "it fell by 14 % in the slowest of them"
    moved = {n for n, one in run.model.named_parameters() if not torch.equal(one, before[n])}
    assert moved == {n for n, one in run.model.named_parameters() if one.requires_grad}
