"""`stoplab compare SPEC`, and what else is done with comparisons: `stoplab compare table …`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stoplab_api.cli import report, run
from stoplab_api.cli.show import AsJson

DEFAULT = "run"


class SpecOrCommand(TyperGroup):
    """A group whose first word may also be a spec: `compare SPEC` is `compare run SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before words that name none; a file `table` is `./table`."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=SpecOrCommand,
    no_args_is_help=True,
    subcommand_metavar="SPEC | COMMAND [ARGS]...",
    help="Run a comparison (`stoplab compare SPEC`), or judge runs made elsewhere.",
)
app.command(DEFAULT)(run.compare)
app.command()(report.report)

Block = Annotated[str, typer.Option(help="Column of the block: one seed, one fold, one day.")]
Arm = Annotated[str, typer.Option(help="Column that names the arm.")]
Metric = Annotated[str, typer.Option(help="Column of the numbers; larger is better.")]
Reference = Annotated[
    str | None,
    typer.Option(help="The arm the others are held against.  [default: deterministic]"),
]
MinEffect = Annotated[
    float, typer.Option(min=0.0, help="Smallest difference that matters, in the metric's unit.")
]
Alpha = Annotated[float, typer.Option(help="Error rate of the interval that decides.")]


@app.command()
def table(
    file: Annotated[Path, typer.Argument(metavar="CSV", help="One row a run, with a header.")],
    block: Block,
    arm: Arm,
    metric: Metric,
    reference: Reference = None,
    min_effect: MinEffect = 0.005,
    alpha: Alpha = 0.05,
    as_json: AsJson = False,
) -> None:
    """Judge a table of runs, made anywhere: one row for each block and arm."""
    # As one word each: a name may begin with a dash.
    words = [f"--block={block}", f"--arm={arm}", f"--metric={metric}"]
    words += [f"--min-effect={min_effect}", f"--alpha={alpha}"]
    words += [] if reference is None else [f"--reference={reference}"]
    words += ["--json"] if as_json else []
    # A process of its own: the statistics stand in a wing that this one does not import.
    command = [sys.executable, "-P", "-m", "stoplab_sweeps.table", *words, "--", str(file)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
