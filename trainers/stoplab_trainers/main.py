"""Run one spec of kind `pretrain` or `evaluate`, in the foreground.

    python -m stoplab_trainers.main SPEC.yaml [--set a.b=value]...

The job's folder is the one of `STOPLAB_JOB_ID`, or a new one below `STOPLAB_HOME`. Exit codes
are those of `stoplab_platform.exits`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from stoplab_platform import logs
from stoplab_platform.errors import (
    DataError,
    DataMissing,
    Fenced,
    SettingsError,
    SpecError,
    Stopped,
)
from stoplab_platform.exits import Exit
from stoplab_platform.ids import new_job_id
from stoplab_platform.paths import JobFolder
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs import EvaluationSpec, RunSpec, load_spec, parse_assignments
from stoplab_platform.tracking import RunIdentity, drain
from stoplab_trainers.evaluation import evaluate_checkpoint
from stoplab_trainers.launch import execute
from stoplab_trainers.summary import Summary

log = logging.getLogger("stoplab")


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, run, and say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.main", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", dest="changes")
    options = parser.parse_args(arguments)
    logs.to_stdout()
    try:
        spec = load_spec(options.spec, parse_assignments(options.changes))
        settings = Settings()
        Secrets(settings).hide_those_in(spec.plain())
        job_id = settings.job_id or new_job_id()
        folder = settings.folders.job(job_id)
        folder.root.mkdir(parents=True, exist_ok=True)
        log.info("job %s  %s", job_id, folder.root)
        summary = _run(spec, job_id, folder, settings.attempt or 1)
    except (SpecError, DataError, SettingsError) as error:
        log.error("%s", error)
        return Exit.NO_DATA if isinstance(error, DataMissing) else Exit.BAD_INPUT
    except Stopped as stop:
        log.info("%s", stop)
        return Exit.STOPPED
    except Fenced as error:
        log.warning("%s", error)
        return Exit.FENCED
    except Exception:
        log.exception("failed")
        return Exit.FAILED
    print(json.dumps(summary.model_dump(), indent=1), flush=True)
    return Exit.OK


def _run(spec: object, job_id: str, folder: JobFolder, attempt: int) -> Summary:
    run = folder.run("run")
    if isinstance(spec, RunSpec):
        identity = RunIdentity(
            job_id=job_id, kind=spec.kind, name=spec.name, attempt=attempt,
            experiment=spec.tracking.experiment, tags=spec.tracking.tags,
        )  # fmt: skip
        try:
            return execute(spec, run, identity, stop_file=folder.stop)
        finally:
            drain(run, Settings().tracking_uri, timeout_s=30)
    if isinstance(spec, EvaluationSpec):
        return evaluate_checkpoint(spec, job_id, run, attempt)
    raise SpecError.of("kind", "give a spec of kind pretrain or evaluate to this command")


if __name__ == "__main__":
    sys.exit(main())
