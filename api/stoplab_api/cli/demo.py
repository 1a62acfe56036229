"""`stoplab demo`: the whole path on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from stoplab_api import demo as demonstration
from stoplab_api.bodies import JobBody
from stoplab_api.cli.interrupts import interruptible
from stoplab_api.cli.show import AsJson, print_json, print_table, print_text, reported, say
from stoplab_api.cli.studies import percent, print_verdict
from stoplab_api.cli.watching import watch
from stoplab_api.client import Client
from stoplab_platform.settings import Settings

CAVEAT = (
    "Digits are too easy for raw pixels and too small for StoP to pay: this shows that the lab "
    "works, not what StoP is worth."
)

Keep = Annotated[bool, typer.Option("--keep", help="Leave the lab running at the end.")]
HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="An empty folder for the lab; default a new one.")
]
Seeds = Annotated[int, typer.Option(min=2, max=100, help="Seeds: pairs of runs.")]


@reported
def demo(
    keep: Keep = False, home: HomeFolder = None, seeds: Seeds = 3, as_json: AsJson = False
) -> None:
    """Start a lab, compare stochastic with deterministic positions on digits, stop again."""
    settings = demonstration.fresh_settings(home)
    say(f"everything goes into {settings.home}")
    with interruptible():
        result = demonstration.run(settings, seeds, _watch, say, keep=keep)
    if as_json:
        print_json(result.document())
    else:
        _print(result)
        _print_places(result, settings, keep)


def _watch(client: Client, job_id: str, check: Callable[[], None]) -> JobBody:
    return watch(client, job_id, also=check)


def _print(result: demonstration.Result) -> None:
    runs = {arm: row["n"] for arm, row in result.comparison["arms"].items()}
    rows = [(f"{arm} positions", runs.get(arm), means) for arm, means in result.arms.items()]
    rows += [
        ("random init (untrained)", None, result.random_init),
        ("raw pixels (no network)", None, result.raw_pixels),
    ]
    print_table(
        ("", "seeds", "kNN", "linear probe"),
        [
            (
                name,
                number,
                percent(means.get("test/knn_top1")),
                percent(means.get("test/linear_top1")),
            )
            for name, number, means in rows
        ],
    )
    print_text("Accuracy on the test split, mean over seeds.\n")
    print_verdict(result.comparison)
    print_text(f"{CAVEAT}\n")


def _print_places(result: demonstration.Result, settings: Settings, keep: bool) -> None:
    home = shlex.quote(str(settings.home))
    print_text(f"It took {result.elapsed_s:.0f} s. Everything lies in {settings.home}")
    print_text(f"MLflow  {result.mlflow['tracking_uri']}, run {result.mlflow['parent_run_id']}")
    if keep:
        print_text(f"Use it   export STOPLAB_HOME={home}; stoplab status")
        print_text(f"Stop it  STOPLAB_HOME={home} stoplab down")
    else:
        print_text(f"Look at it again  STOPLAB_HOME={home} stoplab up")
        print_text(f"Delete it         rm -r {home}")
