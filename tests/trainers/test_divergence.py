"""A run whose loss is no number says since when, by which samples, and what can be gone on from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stoplab_platform.errors import DataAway
from stoplab_trainers import checkpoint, loop
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.divergence import explained
from stoplab_trainers.loop import Run, World
from stoplab_trainers.measure import Diverged
from stoplab_trainers.rank import run_rank
from stoplab_trainers.step import Done, train_step
from stoplab_trainers.watchdog import Watchdog
from support_runs import folder, identity, tiny

BREAKS_AT, EVERY = 67, 10  # the first 50 steps are all logged


@pytest.mark.usefixtures("home")
def test_a_run_that_breaks_names_steps_samples_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: dict[int, list[int]] = {}
    runs: list[Run] = []

    def breaking(run: Run, batch: loop.Batch) -> Done:
        fed[run.step] = batch.ids.tolist()
        runs.append(run)
        done = train_step(run, batch)
        if run.step == BREAKS_AT:  # the next loss is the first that is no number
            with torch.no_grad():
                run.model.predictor.mask_token.fill_(math.nan)
        return done

    monkeypatch.setattr(loop, "train_step", breaking)
    spec = tiny(
        evals=[], optim__epochs=5, tracking__log_every_steps=EVERY,
        checkpoint__every_epochs=None, checkpoint__every_steps=1, checkpoint__keep=2,
    )  # fmt: skip
    run = folder(tmp_path)
    with pytest.raises(Diverged) as ended:
        run_rank(spec, run, identity(), World(), Watchdog(run, World()))
    told = json.loads(run.divergence.read_text())
    assert told["steps"] == [61, 70]
    shards = runs[0].shards
    assert told["samples"] == {
        str(step): [shards.name(one) for one in fed[step]] for step in range(61, 71)
    }
    assert told["message"] in str(ended.value)
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    assert newest.name == "step-00000067", "whole, and good for nothing; later ones are not saved"
    assert told["checkpoint"] == "step-00000066", "they would have pushed it out"
    for words in ("up to step 60", "61 to 70", "divergence.json", "step-00000066"):
        assert words in str(ended.value)


@pytest.mark.usefixtures("home")
def test_weights_that_a_gradient_broke_push_out_no_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the loss of another rank is no number: this one's shows it a step later."""

    def breaking(run: Run, batch: loop.Batch) -> Done:
        weight = run.model.predictor.proj.weight
        handle = weight.register_hook(
            lambda grad: grad * math.nan if run.step == BREAKS_AT else grad
        )
        done = train_step(run, batch)
        handle.remove()
        assert math.isfinite(float(done.loss)) or run.step > BREAKS_AT
        return done

    monkeypatch.setattr(loop, "train_step", breaking)
    spec = tiny(
        evals=[], optim__epochs=5, tracking__log_every_steps=EVERY,
        checkpoint__every_epochs=None, checkpoint__every_steps=1, checkpoint__keep=1,
    )  # fmt: skip
    run = folder(tmp_path)
    with pytest.raises(Diverged, match="up to step 60"):
        run_rank(spec, run, identity(), World(), Watchdog(run, World()))
    assert json.loads(run.divergence.read_text())["checkpoint"] == "step-00000066"


def one_of_two(rank: int, root: Path) -> None:
    """A rank of a run whose second one has weights that are no numbers after the third step."""
    dist.init_process_group("gloo", f"file://{root}/meet", rank=rank, world_size=2)

    def breaking(run: Run, batch: loop.Batch) -> Done:
        done = train_step(run, batch)
        if (run.step, rank) == (3, 1):
            with torch.no_grad():
                run.model.predictor.mask_token.fill_(math.nan)
        return done

    loop.train_step = breaking  # type: ignore[attr-defined]
    run, world, spec = folder(root), World(rank, 2), tiny(evals=[], checkpoint__every_steps=1)
    with pytest.raises(Diverged) as ended, Watchdog(run, world) as watchdog:
        run_rank(spec, run, identity(), world, watchdog)
    (root / f"said{rank}").write_text(f"{run.divergence.exists()} {ended.value}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_no_rank_ends_before_the_first_has_told(tmp_path: Path) -> None:
    """Else Ray Train would kill that one while it still reads checkpoints."""
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = ((tmp_path / f"said{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("True the loss is nan at step 4; all losses up to step 3 were numbers")
    assert first.endswith("last good checkpoint: step-00000003")


@pytest.mark.usefixtures("home")
def test_a_store_that_is_away_does_not_hide_that_a_run_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise DataAway("s3://box does not answer")

    monkeypatch.setattr(checkpoint, "sound", away)
    run, folder_ = Run(tiny(), ShardSet.open("digits", tmp_path)), folder(tmp_path)
    with pytest.raises(Diverged, match=r"last good checkpoint: not known \(s3://box does not"):
        with explained(run, folder_):
            raise Diverged("the loss is nan at step 1")
    assert json.loads(folder_.divergence.read_text())["checkpoint"] is None


def test_where_no_checkpoint_is_good_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.sound(tmp_path / "nothing") is None
    good, bad = ({"model": {"w": torch.tensor([value])}, "target": {}} for value in (1.0, math.inf))
    for step, state in enumerate((bad, good, good, bad)):
        checkpoint.save(tmp_path / "some", step=step, tensors=state, identity={}, keep=9)
    (tmp_path / "some" / "step-00000002" / "state.pt").write_bytes(b"broken")
    found = checkpoint.sound(tmp_path / "some")
    assert found is not None
    assert str(found) == str(tmp_path / "some" / "step-00000001")
    checkpoint.save(tmp_path / "bad", step=0, tensors=bad, identity={}, keep=9)
    assert checkpoint.sound(tmp_path / "bad") is None
