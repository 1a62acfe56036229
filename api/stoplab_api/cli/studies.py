"""Tables of sweeps and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from stoplab_api.answers import BestBody, TrialBody, TrialListBody
from stoplab_api.cli.show import made_table, out, print_table, print_text

ERROR_ROOM = 160  # characters of an error in a table


def print_trials(found: TrialListBody) -> None:
    """One line a run, how many there are in each state, and a sweep's best so far."""
    out().print(trials_table(found.items), markup=False, highlight=False)
    counts = (f"{number} {state}" for state, number in sorted(found.counts.items()))
    print_text(", ".join(counts))
    if line := best_line(found):
        print_text(line)


def trials_table(trials: Sequence[TrialBody]) -> Table:
    """One line a run, with its metrics on the validation and test splits."""
    names = sorted({n for t in trials for n in t.metrics if n.startswith(("val/", "test/"))})
    fields = sorted({field for trial in trials for field in trial.point})
    rows = [
        (
            trial.id,
            *(_value(trial.point.get(field)) for field in fields),
            trial.seed,
            trial.state,
            *(_number(trial.metrics.get(name)) for name in names),
            _first_line(trial.error),
        )
        for trial in trials
    ]
    return made_table(("run", *fields, "seed", "state", *names, "error"), rows)


def best_line(found: TrialListBody) -> str:
    """The best point so far in a sentence; empty where there is none."""
    best = found.best
    if best is None:
        return ""
    place = ", ".join(f"{field}={_value(value)}" for field, value in best.point.items())
    if best.ci95 is None:
        return f"best so far: {best.mean:.4f} at {place} (one seed, no interval)"
    low, high = best.ci95
    return (
        f"best so far: {best.mean:.4f} at {place} (95 % interval {low:.4f} to {high:.4f}, "
        f"{best.n} seeds{_company(best)})"
    )


def _company(best: BestBody) -> str:
    """How many points are as good, as far as one can tell."""
    if best.tied is None or best.n_points is None:
        return ""
    unjudged = f", {best.n_unjudged} could not be judged" if best.n_unjudged else ""
    others = f"{len(best.tied)} of the {best.n_points - 1} others"
    return f"; {others} cannot be told apart from it{unjudged}"


def print_comparison(result: Mapping[str, Any]) -> None:
    """The arms on the metric that decides, the difference, and the verdict."""
    print_table(
        ("arm", "runs", result["metric"], "std"),
        [
            (_starred(arm, result), row["n"], _number(row["mean"]), _number(row["std"]))
            for arm, row in result["arms"].items()
        ],
    )
    print_text("* the reference")
    print_verdict(result)


def print_verdict(result: Mapping[str, Any]) -> None:
    """Difference, interval and verdict of each arm, in sentences."""
    reference = result["reference"]
    for arm, one in result["comparisons"].items():
        if one["delta"] is not None and one["ci95"] is not None:
            low, high = one["ci95"]
            print_text(
                f"{arm} minus {reference}: {points(one['delta'])} points of {result['metric']}, "
                f"95 % interval {points(low)} to {points(high)}, {one['n_blocks']} pairs of runs."
            )
        print_text(f"Verdict: {_verdict(arm, one, result)}.")


def _verdict(arm: str, one: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    reference, smallest = result["reference"], f"{100 * result['min_effect']:g} points"
    match one["verdict"]:
        case "better" | "worse" as word:
            return f"{arm} is {word} than {reference}"
        case "equivalent":
            return f"{arm} and {reference} are equivalent: they differ by less than {smallest}"
        case "inconclusive":
            more = one.get("more_seeds_for_80_power")
            advice = f"; about {more} more seeds would be needed" if more else ""
            return f"inconclusive, these runs do not tell {arm} from {reference}{advice}"
        case _:
            return str(result["sentence"])


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def percent(value: float | None) -> str | None:
    """A fraction in percent."""
    return None if value is None else f"{100 * value:.1f} %"


def _starred(arm: str, result: Mapping[str, Any]) -> str:
    return f"{arm} *" if arm == result["reference"] else arm


def _value(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _first_line(error: str | None) -> str | None:
    return error.splitlines()[0][:ERROR_ROOM] if error else None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
