"""On a GPU: what the processor computes, no waiting, and nothing compiled again and again."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch._dynamo.utils import counters

from stoplab_trainers import checkpoint, graphs
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hardware import matrix_rate, precision
from stoplab_trainers.loop import Run, World, _feed, steps
from stoplab_trainers.measure import measure
from stoplab_trainers.randomness import draw_noise
from stoplab_trainers.rank import run_rank
from stoplab_trainers.snapshot import Snapshots
from stoplab_trainers.step import train_step
from stoplab_trainers.watchdog import Watchdog
from support_runs import folder, identity, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # the compiler warns of what it does itself
]
GPU = World(device=torch.device("cuda", 0))
PLAIN: dict[str, Any] = {"compute__precision": "fp32", "compute__compile": "off"}
DEEP: dict[str, Any] = {"model__depth": 2, "model__predictor__depth": 2}
A_PENALTY = {"norm": "l2", "weight": 1e-3}
PROTOCOLS = [
    {"kind": "knn", "every_epochs": 1},
    {"kind": "linear"},
    {"kind": "linear_sgd", "epochs": 1, "steps": [], "batch_size": 64, "crop_scale": [0.7, 1.0]},
    {"kind": "low_shot", "per_class": 5},
    {"kind": "location"},
    {"kind": "robustness", "shift": 1, "crop": 0.875},
    {"kind": "finetune", "epochs": 1, "warmup_epochs": 0, "per_class": 20, "crop_scale": [0.7, 1]},
]


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """The compiler cannot trace through the checks of shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


def losses(run: Run, count: int) -> list[float]:
    """Of its next steps."""
    reports = (report for _, report in zip(range(count), steps(run), strict=False))
    return [report.metrics["train/loss"] for report in reports]


def on_gpu(digits: ShardSet, **changes: Any) -> Run:
    return Run(tiny(compute__gpus_per_worker=1, **DEEP, **changes), digits, GPU)


def test_the_losses_are_the_processors(digits: ShardSet) -> None:
    here = losses(on_gpu(digits, **PLAIN), 8)
    assert here == pytest.approx(losses(Run(tiny(**DEEP), digits), 8), rel=1e-4)


@pytest.mark.parametrize("compiled", ["on", "off"])
def test_noise_is_the_processors(compiled: str) -> None:
    spec, sizes = tiny(compute__compile=compiled, positions__noise_on="both"), (7, 3, 5)
    here = draw_noise(spec, 3, slice(0, 64), *sizes, GPU.device)
    there = draw_noise(tiny(positions__noise_on="both"), 3, slice(0, 64), *sizes, "cpu")
    for one, other in zip(here, there, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.cpu(), other, atol=1e-5, rtol=1e-5)


def test_what_is_chosen_for_a_gpu_learns_nearly_the_same(digits: ShardSet) -> None:
    chosen = on_gpu(digits)
    assert precision(chosen.spec, GPU.device) == "bf16"
    assert losses(chosen, 8) == pytest.approx(losses(on_gpu(digits, **PLAIN), 8), rel=0.02)


def test_nothing_is_compiled_again_and_again(digits: ShardSet) -> None:
    """Masks change their sizes at every step, evaluations the size of a batch."""
    run = on_gpu(digits)
    feed = steps(run)
    for _ in range(12):
        next(feed)
    with torch.no_grad():
        for count in (64, 37, 11):
            run.target.features(torch.rand(count, 3, 16, 16, device=GPU.device))
    before = counters["stats"]["unique_graphs"]
    for _ in feed:
        pass
    with torch.no_grad():
        run.target.features(torch.rand(5, 3, 16, 16, device=GPU.device))
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["graph_break"]


def test_steps_between_logged_ones_wait_for_no_gpu(digits: ShardSet) -> None:
    run = on_gpu(digits)
    feed = _feed(run)
    for _ in range(30):  # to compile, and to make a graph, may wait
        run.step += 1
        train_step(run, next(feed))
    assert run.graphs is not None
    assert run.graphs.count > 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.step += 1
            done = train_step(run, next(feed))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert measure(run, done)["train/loss"] > 0


def test_a_snapshot_waits_for_nothing(digits: ShardSet) -> None:
    run = on_gpu(digits)
    feed = steps(run)
    next(feed)
    snapshots = Snapshots()
    snapshots.take(run.state())  # memory is pinned
    wanted = checkpoint.weights_sha256(run.model.state_dict())
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = snapshots.take(run.state())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    next(feed)
    snapshots.settle()
    assert taken["model"]["encoder.vit.blocks.0.mlp.fc1.weight"].is_pinned()
    assert checkpoint.weights_sha256(taken["model"]) == wanted
    assert checkpoint.weights_sha256(run.model.state_dict()) != wanted


def test_a_checkpoint_goes_on_here_and_there(digits: ShardSet) -> None:
    run = on_gpu(digits, **PLAIN)
    losses(run, 6)
    state = run.state()
    again, there = on_gpu(digits, **PLAIN), Run(tiny(**DEEP), digits)
    for one in (again, there):
        one.load(6, deepcopy(state))  # on its own device it would be shared
    expected = losses(run, 4)
    assert losses(again, 4) == pytest.approx(expected, rel=1e-4)
    assert losses(there, 4) == pytest.approx(expected, rel=1e-4)


def test_a_whole_run_under_every_protocol(tmp_path: Path) -> None:
    spec = tiny(compute__gpus_per_worker=1, evals=PROTOCOLS, **DEEP)
    run = folder(tmp_path)
    summary = run_rank(spec, run, identity(), GPU, Watchdog(run, GPU))
    assert summary is not None
    assert summary.steps == 38
    assert (summary.facts["device"], summary.facts["precision"]) == ("cuda", "bf16")
    assert summary.metrics["train/mfu"] > 0
    for kind in ("knn", "linear", "linear_sgd", "low_shot", "finetune"):
        found = [
            value for name, value in summary.metrics.items() if name.startswith(f"test/{kind}")
        ]
        assert found, kind
        assert all(0 < value <= 1 for value in found), kind


def metrics(run: Run) -> list[dict[str, float]]:
    """Of all its steps, without what a clock gives."""
    timed = ("train/samples_per_s", "train/mfu")
    return [
        {name: value for name, value in report.metrics.items() if name not in timed}
        for report in steps(run)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compute__accumulate": 2},
        {"positions__noise_on": "both", "optim__clip_grad": 0.5, "optim__a_penalty": A_PENALTY},
        {"compute__activation_checkpointing": True},
        {"compute__precision": "bf16"},
        {"positions": {"kind": "deterministic", "table": "learned"}},
        {"objective": "mae", "masking": {"kind": "random"}},
    ],
    ids=["plain", "in parts", "noise and penalty", "recomputed", "bf16", "learned", "mae"],
)
def test_graphs_change_no_number(digits: ShardSet, changes: dict[str, Any]) -> None:
    """Beyond the order of sums, which is another one each time."""
    exact = {**PLAIN, "compute__compile": "on", **changes}
    run, plain = on_gpu(digits, **exact), on_gpu(digits, **exact)
    plain.graphs = None
    here, wanted = metrics(run), metrics(plain)
    assert run.graphs is not None
    assert run.graphs.count > 0
    assert len(here) == len(wanted) == 38
    for one, other in zip(here, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for trained, other_trained in zip(run.weights, plain.weights, strict=True):
        torch.testing.assert_close(trained, other_trained, atol=1e-4, rtol=1e-3)


def test_attention_is_not_cudnns(digits: ShardSet) -> None:
    run = on_gpu(digits)
    losses(run, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        losses(run, 2)
    called = {event.key for event in profiler.key_averages()}
    assert any("attention" in name for name in called)
    assert not any("cudnn_attention" in name for name in called)


@pytest.mark.parametrize("count", [63, 64, 65, 192])
def test_scores_far_below_zero_have_a_gradient(count: int) -> None:
    """As the first number of each query times that of each key gives them: about -120."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 12, count, 64, device="cuda", dtype=torch.bfloat16)
    query[..., 0], key[..., 0] = 1, -120 * 8
    inputs = [part.requires_grad_() for part in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*inputs)
    for gradient in torch.autograd.grad(out, inputs, torch.randn_like(out)):
        assert gradient.isfinite().all()


def test_without_room_there_are_no_graphs(
    monkeypatch: pytest.MonkeyPatch, digits: ShardSet
) -> None:
    monkeypatch.setattr(graphs, "has_room", lambda: False)
    run = on_gpu(digits)
    losses(run, 20)
    assert run.graphs is not None
    assert run.graphs.count == 0


def test_the_rate_of_matrix_products_is_this_gpus() -> None:
    fast = matrix_rate(GPU.device, torch.bfloat16)
    assert 1e12 < matrix_rate(GPU.device, torch.float32) < fast < 1e16
