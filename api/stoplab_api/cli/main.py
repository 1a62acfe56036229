"""The command line: ``stoplab --help``."""

from __future__ import annotations

import logging

import typer

from stoplab_api.cli import (
    compare,
    demo,
    doctor,
    estimate,
    export,
    inspecting,
    jobs,
    keeping,
    lab,
    run,
    secrets,
    shards,
    spec,
    submit,
    tokens,
)

app = typer.Typer(
    name="stoplab",
    help="An experiment lab for StoP (stochastic positional embeddings) pretraining.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they may hold tokens
)


@app.callback()
def _calm() -> None:
    # Every request would be a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)


for command in (
    demo.demo, lab.up, lab.down, lab.status, doctor.doctor, lab.env,
    run.train, run.sweep, run.evaluate, estimate.estimate, submit.submit,
    export.export, inspecting.inspect,
    keeping.events, keeping.prune, keeping.backup, keeping.restore,
):  # fmt: skip
    app.command()(command)
app.add_typer(compare.app, name="compare")
app.add_typer(jobs.app, name="jobs")
app.add_typer(secrets.app, name="secrets")
app.add_typer(shards.app, name="shards")
app.add_typer(spec.app, name="spec")
app.add_typer(tokens.app, name="tokens")


if __name__ == "__main__":
    app()
