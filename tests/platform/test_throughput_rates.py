from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.paths import Home, JobFolder
from stoplab_platform.rates import Measured, measured, rate, shape
from stoplab_platform.specs import RunSpec, override, parse
from support_runs import tiny


def finished(folder: JobFolder, spec: RunSpec, speed: float, **changes: Any) -> JobFolder:
    """A folder as a finished run leaves it."""
    steps = spec.optim.epochs * 19
    seconds = steps * spec.optim.batch_size / speed + 8
    summary = {"steps": steps, "elapsed_s": seconds, "facts": {}, "metrics": {}, **changes}
    run = folder.run("run")
    write_atomic(run.spec, spec.to_yaml())
    write_json(run.progress, {"samples_per_s": speed})
    write_json(run.summary, summary)
    return folder


@pytest.fixture
def known(home: Path) -> list[Measured]:
    """Three runs of one shape, and a larger one."""
    jobs = Home(home)
    runs = [(tiny(seed=i), speed) for i, speed in enumerate((900.0, 1000.0, 1200.0))]
    runs.append((tiny(model__depth=6, model__width=64), 300.0))
    return measured(finished(jobs.job(f"j_{i}"), *run) for i, run in enumerate(runs))


def test_runs_of_the_same_shape(known: list[Measured]) -> None:
    found = rate(tiny(seed=9, positions__noise_std=0.5, optim__epochs=7), known)
    assert found.confidence == "measured"
    assert found.samples_per_s.value == 1000
    assert found.samples_per_s.low == pytest.approx(900 / 1.15)
    assert found.samples_per_s.high == pytest.approx(1200 * 1.15)
    assert found.runs == ("j_0/run", "j_1/run", "j_2/run")
    assert found.overhead_s is None, "other epochs, other evaluations"
    assert rate(tiny(seed=9), known).overhead_s == pytest.approx(8)


def test_the_nearest_run_is_scaled(known: list[Measured]) -> None:
    small, large = tiny(model__depth=2), tiny(model__depth=8, model__width=64)
    assert rate(small, known).runs[0] in ("j_0/run", "j_1/run", "j_2/run")
    found = rate(large, known)
    assert (found.confidence, found.runs) == ("scaled", ("j_3/run",))
    assert 200 < found.samples_per_s.value < 300
    near = found.samples_per_s.high / found.samples_per_s.low
    far = rate(tiny(model__depth=12, model__width=256), known).samples_per_s
    assert far.high / far.low > near, "the farther, the wider"


def test_without_a_run_it_is_assumed(known: list[Measured]) -> None:
    gpu = tiny(compute__gpus_per_worker=1)
    found = rate(gpu, known)
    assert found.confidence == "assumed", "a CPU tells nothing of a GPU"
    assert "assumed" in found.sentence
    assert rate(tiny(), []).confidence == "assumed"
    large = {"model__depth": 12, "model__width": 256}
    two = rate(tiny(**large, compute__workers=2), []).samples_per_s.value
    assert two == pytest.approx(2 * rate(tiny(**large), []).samples_per_s.value)
    assert rate(tiny(), []).samples_per_s.value == 300 / 3 * 64, "a step costs, however small"


def test_decoding_bounds_a_gpu() -> None:
    changes = {"compute.gpus_per_worker": 1, "data.train": "/x/{0..9}.tar", "evals": []}
    spec = parse(RunSpec, override(tiny().plain(), changes))
    assert rate(spec, []).samples_per_s.value == 400 * spec.data.loader_threads
    alone = parse(RunSpec, override(spec.plain(), {"data.loader_threads": 0}))
    assert rate(alone, []).samples_per_s.value == 400, "the training thread decodes"


@pytest.mark.parametrize(
    "changes",
    [
        {"model__depth": 2}, {"optim__batch_size": 32}, {"compute__threads": 2},
        {"compute__precision": "bf16"}, {"masking__target__count": 2}, {"data__image_size": 32},
    ],
)  # fmt: skip
def test_another_shape(changes: dict[str, Any]) -> None:
    assert shape(tiny(**changes)) != shape(tiny())


def test_what_does_not_change_the_shape() -> None:
    assert shape(tiny(seed=3, optim__lr=1e-4, compute__max_failures=0)) == shape(tiny())


def test_only_whole_runs_count(home: Path) -> None:
    jobs = Home(home)
    paused = finished(jobs.job("j_a"), tiny(), 1000, elapsed_s=0.1)
    (one,) = measured([paused])
    assert one.overhead_s is None, "its process saw a part of the steps"
    going = finished(jobs.job("j_b"), tiny(), 1000)
    going.run("run").summary.unlink()
    odd = finished(jobs.job("j_c"), tiny(), 1000)
    odd.run("run").spec.write_text("kind: pretrain\nold: true\n")
    leg = finished(jobs.job("j_d"), tiny(), 1000, steps=19, facts={"until_epoch": 1})
    (only,) = measured([going, odd, leg])
    assert only.images == 19 * 64, "a leg has fewer epochs"
