"""A comparison's result in words: the verdict as a sentence, and what it cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Judged = Mapping[str, Any]


def sentence(judged: Judged) -> str:
    """The verdict in plain words, without its full stop; one after the other for several arms."""
    arms = judged["comparisons"].items()
    return ". ".join(_of_arm({**judged, **one, "other": arm}) for arm, one in arms)


def _of_arm(judged: Judged) -> str:
    verdict, other, reference = judged["verdict"], judged["other"], judged["reference"]
    if verdict == "refused":
        return f"no verdict, the pairing is broken: {judged['certificate']['reasons'][0]}"
    if judged["ci95"] is None:
        which = f"{other}, " if len(judged["comparisons"]) > 1 else ""
        few = f"{judged['n_blocks']} complete block(s), two or more are needed"
        return f"inconclusive: {which}{few}"
    seen = _seen(judged)
    if verdict in ("better", "worse"):
        return f"{other} is {verdict} than {reference}: {seen}"
    if verdict == "equivalent":
        return f"{other} and {reference} are equivalent within {judged['min_effect']:g}: {seen}"
    which = f"{other} against {reference}, " if len(judged["comparisons"]) > 1 else ""
    return f"inconclusive: {which}{seen}; {_advice(judged)}"


def warnings(judged: Judged) -> list[str]:
    """What this design cannot show, and what a reader should know; a sentence each."""
    kinds = (_too_few, _no_spread, _several, _looked, _beyond, _half_blocks, _unlike, _no_baseline)
    return [line for kind in kinds for line in kind(judged)]


def _seen(judged: Judged) -> str:
    delta, look = f"{judged['metric']} {judged['delta']:+.4f}", judged["sequential"]
    blocks = f"{judged['n_blocks']} blocks"
    if judged["ci_alpha"] is None:
        return f"{delta}, {blocks}"
    low, high = judged["ci_alpha"]
    level = look["alpha_here"] if look else judged["alpha"]
    where = f", look {look['look']} of {len(look['looks'])}" if look else ""
    return f"{delta}, {100 * (1 - level):.4g} % interval {low:+.4f} to {high:+.4f}, {blocks}{where}"


def _advice(judged: Judged) -> str:
    more, look = judged["more_seeds_for_80_power"], judged["sequential"]
    if look and look["next"] is not None:
        return f"the next planned look is at {look['next']} blocks"
    if look:
        return "that was the last planned look"
    if more is None:
        return "no number of seeds can be named"
    if more == 0:
        effect = max(abs(judged["delta"]), judged["min_effect"])
        return f"these seeds had 80 % power for a difference of {effect:.4g}"
    return f"about {more} more seed{'s' if more > 1 else ''} for 80 % power"


def _too_few(judged: Judged) -> Iterator[str]:
    """With n blocks there are 2^n sign patterns, and two of them are the most extreme."""
    alpha = judged["alpha"]
    for n in sorted({one["n_blocks"] for one in judged["comparisons"].values()}):
        least = 2 / 2**n
        if n >= 2 and least > alpha:
            enough = math.ceil(math.log2(2 / alpha))
            yield (
                f"{n} blocks cannot get a sign-flip p below {least:g}, so that test cannot reach "
                f"{alpha:g} whatever the difference; {enough} blocks can"
            )


def _no_spread(judged: Judged) -> Iterator[str]:
    for arm, one in judged["comparisons"].items():
        low, high = one["ci95"] or (None, None)
        if low is not None and low == high:
            yield (
                f"{arm} has the same difference in all {one['n_blocks']} blocks: that tells "
                "nothing of its spread, so neither the interval nor the verdict can be trusted"
            )


def _several(judged: Judged) -> Iterator[str]:
    arms = len(judged["comparisons"])
    if arms > 1:
        yield (
            f"{arms} arms are held against {judged['reference']}, and each verdict is of its arm "
            f"alone: one of them errs more often than {judged['alpha']:g}; p_holm is adjusted for "
            "all"
        )


def _looked(judged: Judged) -> Iterator[str]:
    looks = [one["sequential"] for one in judged["comparisons"].values() if one["sequential"]]
    if any(look["look"] != 1 and look["next"] != look["looks"][0] for look in looks):
        yield (
            "the looks before this one are counted in the verdict and its interval, not in the p "
            "values nor in the 95 % intervals"
        )


def _beyond(judged: Judged) -> Iterator[str]:
    """Whole blocks that came after the last planned look had all it needs."""
    look = judged["sequential"]
    blocks = [b["seed"] for b in judged["blocks"] if None not in b["values"].values()]
    if look and len(blocks) > (last := look["looks"][-1]):
        left = _few([str(seed) for seed in blocks[last:]])
        yield f"the last planned look is at {last} blocks; those after it are left out: {left}"


def _half_blocks(judged: Judged) -> Iterator[str]:
    missing = {
        block["seed"]: [arm for arm, value in block["values"].items() if value is None]
        for block in judged["blocks"]
    }
    empty = [str(seed) for seed, arms in missing.items() if len(arms) == len(judged["arms"])]
    half = [
        f"{seed} (no {', '.join(arms)})"
        for seed, arms in missing.items()
        if 0 < len(arms) < len(judged["arms"])
    ]
    if half:
        yield f"half blocks are shown and left out: {_few(half)}"
    if empty:
        yield f"blocks without any result: {_few(empty)}"


def _unlike(judged: Judged) -> Iterator[str]:
    streams = (judged["certificate"] or {}).get("streams", {})
    some = [name for name, state in streams.items() if state == "seed-paired"]
    if some:
        yield (
            f"the arms change their {', '.join(some)} on purpose: there they share a seed and "
            "nothing else, so a difference may come from these draws, and pairing gains less"
        )


def _no_baseline(judged: Judged) -> Iterator[str]:
    if judged["certificate"] is None:
        return  # runs made elsewhere
    if judged["baseline"] is None:
        yield f"the reference {judged['reference']} is none of the named baselines"
    if judged["baseline"] == "official_off":
        yield "the reference is official_off, which has no mask token: it is not I-JEPA"


def _few(words: list[str]) -> str:
    shown = 5
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more
