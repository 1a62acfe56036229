"""Real runs of a comparison in which one arm is fed something else: the certificate tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stoplab_platform import masks
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.ledger import Ledger
from stoplab_sweeps.cells import train
from stoplab_sweeps.study import run_study
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.model import init
from support_studies import comparison, one_by_one, start

SHORT = {"optim.epochs": 1, "optim.warmup_epochs": 0.1}


def judged(tamper: Callable[[pytest.MonkeyPatch], None] | None, **spec: Any) -> tuple[Exit, Any]:
    """A comparison's end and result; ``tamper`` is in force while the stochastic arm runs."""

    def execute(run: Any, folder: Any, identity: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if tamper is not None and identity.arm == "stochastic":
                tamper(patch)
            return train(run, folder, identity, **named)

    study = comparison(SHORT, seeds=[0, 1], **spec)
    code = run_study(study, start(), schedule=one_by_one, execute=execute)
    return code, read_json(start().folder.comparison)


def other_order(patch: pytest.MonkeyPatch) -> None:
    ours = Plan._draw_order
    patch.setattr(Plan, "_draw_order", lambda *of: ours(*of)[::-1].copy())


def other_weights(patch: pytest.MonkeyPatch) -> None:
    ours = init._draw
    patch.setattr(init, "_draw", lambda *of: -ours(*of))


def other_masks(patch: pytest.MonkeyPatch) -> None:
    ours = masks.draw

    def drawn(*of: Any, seed: int, **named: Any) -> Any:
        return ours(*of, seed=seed + 1, **named)

    patch.setattr(masks, "draw", drawn)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tamper", "stream", "whole"),
    [
        (other_order, "samples", {"init", "masks"}),
        (other_weights, "init", {"samples", "masks", "crops"}),
        (other_masks, "masks", {"init", "samples", "crops"}),
    ],
)
def test_an_arm_that_is_fed_something_else_is_refused(
    tamper: Callable[[pytest.MonkeyPatch], None], stream: str, whole: set[str]
) -> None:
    code, result = judged(tamper)
    assert (code, result["verdict"]) == (Exit.FAILED, "refused")
    certificate = result["certificate"]
    assert not certificate["passed"]
    assert certificate["streams"][stream] == "broken"
    assert {certificate["streams"][name] for name in whole} == {"equal"}
    assert any(stream in reason and "seed 0" in reason for reason in certificate["reasons"])
    assert result["sentence"].startswith("no verdict, the pairing is broken")


def test_arms_with_their_own_learning_rate_are_pairs() -> None:
    """Nothing of an optimiser's pace touches what a run is fed; the machine's facts are kept."""
    arms = {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {"optim.lr": 5e-4}}
    code, result = judged(None, arms=arms)
    assert (code, result["certificate"]["passed"]) == (Exit.OK, True)
    assert result["certificate"]["pairing"] == "paired"
    assert set(result["certificate"]["streams"].values()) == {"equal"}
    assert {"precision", "threads", "device"} <= set(result["certificate"]["streams"])
    kept = Ledger(start().folder).get("stochastic-s0").certificate
    assert (kept["precision"], kept["device"]) == ("fp32", "cpu")
    per_image = result["per_image"]["arms"]["stochastic"]
    assert [block["seed"] for block in per_image] == [0, 1]
    gap = [(b["only_other"] - b["only_reference"]) / b["n_images"] for b in per_image]
    assert gap == pytest.approx([block["delta"] for block in result["blocks"]])
