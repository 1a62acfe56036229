"""What the numbers of a comparison mean, in plain words, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which the colour-blind can tell apart; the first: the reference."""

BASELINES: Mapping[str | None, str] = {
    "ijepa": "deterministic positions",
    "stop_sigma0": "StoP without noise (stop_sigma0)",
    "official_off": "positions without a mask token (official_off, which is not I-JEPA)",
}
"""What a surface's noise 0 stands for."""

PRIMARY = ("arm", "difference", "95 % interval", "p", "p, Holm", "d_z", "verdict")
SECONDARY = ("metric", "arm", "difference", "95 % interval", "p", "p, Holm", "d_z")
IMAGES = ("arm", "seed", "only the reference right", "only the arm right", "images", "p, McNemar")


class Fact(NamedTuple):
    """One statistic."""

    name: str
    value: str
    meaning: str


def facts(one: Mapping[str, Any], judged: Mapping[str, Any], arm: str) -> list[Fact]:
    """Everything that is known of one arm against the reference."""
    reference, smallest = judged["reference"], judged["min_effect"]
    here = (one.get("sequential") or {}).get("alpha_here")
    level = f"{100 * (1 - (here or judged['alpha'])):.4g} %"
    found = [
        Fact("verdict", one["verdict"], "Follows from the deciding interval and the smallest "
             f"difference that matters ({smallest:g}), both fixed before the runs."),
        Fact("difference", signed(one["delta"]),
             f"Mean of {arm} minus {reference} over the blocks that hold both."),
        Fact("blocks", str(one["n_blocks"]),
             "Seeds in which both arms ran on the same weights, images, crops and masks."),
        Fact("95 % interval", interval(one["ci95"]),
             "Paired t: differences that these runs are compatible with."),
        Fact(f"deciding interval ({level})", interval(one["ci_alpha"]),
             "Excludes 0: better or worse. Inside the smallest difference that matters: "
             "equivalent. Else: inconclusive."),
        Fact("95 % interval, bootstrap", interval(one["ci95_bca"]),
             "BCa: the same without the assumption of a normal distribution; from ten blocks."),
        Fact("95 % interval, unpaired", interval(one["ci95_unpaired"]),
             "Welch: what the same runs would tell had they not been paired."),
        Fact("p, paired t", p(one["p_t"]),
             "How often a difference this large would come by chance were there none."),
        Fact("p, sign flips", p(one["p_sign_flip"]),
             "The same with no assumption but symmetry."),
        Fact("p, Wilcoxon", p(one["p_wilcoxon"]), "The same from ranks alone."),
        Fact("p, Holm", p(one.get("p_holm")),
             "The t-test's p, adjusted for all comparisons that were made."),
        Fact("p, equivalence (TOST)", p(one["tost_p"]),
             "Small: the arms differ by less than the smallest difference that matters."),
        Fact("effect size d_z", number(one["d_z"], 2),
             "The difference in units of its spread from block to block."),
        Fact("ahead in", share(one["prob_superior"]),
             f"Share of blocks in which {arm} is ahead of {reference}."),
        Fact("more seeds for 80 % power", _whole(one["more_seeds_for_80_power"]),
             "Blocks to add until a difference of this size is found four times in five."),
    ]  # fmt: skip
    return found


def primary_rows(judged: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The metric that decides: arm, difference, interval, p, p after Holm, d_z, verdict."""
    return [
        (arm, signed(one["delta"]), interval(one["ci95"]), p(one["p_t"]), p(one["p_holm"]),
         number(one["d_z"], 2), one["verdict"])
        for arm, one in judged["comparisons"].items()
    ]  # fmt: skip


def secondary_rows(judged: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The other metrics: metric, arm, difference, interval, p, p after Holm, d_z."""
    return [
        (row["metric"], row["arm"], signed(row["delta"]), interval(row["ci95"]), p(row["p_t"]),
         p(row["p_holm"]), number(row["d_z"], 2))
        for row in judged.get("secondary") or []
    ]  # fmt: skip


def image_rows(judged: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Image by image: arm, seed, right in one arm only (two numbers), images, McNemar's p."""
    arms = (judged.get("per_image") or {}).get("arms", {})
    return [
        (arm, str(row["seed"]), str(row["only_reference"]), str(row["only_other"]),
         str(row["n_images"]), p(row["p_mcnemar"]))
        for arm, rows in arms.items() for row in rows
    ]  # fmt: skip


def image_note(judged: Mapping[str, Any]) -> str:
    """What the images say about where the spread comes from; empty where nothing is known."""
    known = judged.get("per_image") or {}
    parts = [
        f"{name}: {number(known[key])}"
        for key, name in (("test_set_se", "standard error from the size of the test set"),
                          ("seed_sd", "standard deviation from seed to seed"))
        if known.get(key) is not None
    ]  # fmt: skip
    return ". ".join([*parts, *([str(known["note"])] if known.get("note") else [])])


def looks(judged: Mapping[str, Any]) -> str:
    """The group-sequential design in a sentence; empty where there is none."""
    plan = judged.get("sequential")
    if not plan:
        return ""
    at = ", ".join(str(blocks) for blocks in plan["looks"])
    now = "between looks" if plan.get("look") is None else f"look {plan['look']}"
    here, so_far = number(plan.get("alpha_here")), number(plan.get("alpha_spent"))
    return (
        f"Looks planned at {at} blocks ({plan['spending'].replace('_', ' ')} spending); this is "
        f"{now}, at a nominal error rate of {here}; {so_far} is spent so far."
    )


def number(value: float | None, digits: int = 4) -> str:
    """A plain number; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference."""
    return "-" if value is None else f"{value:+.4f}"


def interval(ends: Sequence[float] | None) -> str:
    """Two ends."""
    return "undefined" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def ends_of(point: Mapping[str, Any]) -> str:
    """The interval of a measured point."""
    ends = point["ci95"]
    return "one run" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def p(value: float | None) -> str:
    """A p value, with as many digits as it deserves."""
    if value is None:
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def share(value: float | None) -> str:
    """A fraction in percent."""
    return "-" if value is None else f"{100 * value:.0f} %"


def _whole(value: int | None) -> str:
    return "-" if value is None else str(value)
