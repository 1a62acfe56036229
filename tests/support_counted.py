"""A sweep's driver as a process of its own, whose runs take a moment and count their starts.

python -m support_counted SPEC.yaml      (with this folder on PYTHONPATH)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from stoplab_platform.errors import Stopped
from stoplab_platform.files import read_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs import ComparisonSpec, RunSpec, SweepSpec, load_spec
from stoplab_platform.tracking import RunIdentity
from stoplab_sweeps.cells import Start
from stoplab_sweeps.study import run_study
from stoplab_sweeps.tuning import run_in_tune
from stoplab_trainers.summary import Summary
from support_studies import summary

RUN_S = float(os.environ.get("COUNTED_RUN_S", "0.5"))  # how long a run seems to train
EPOCHS = 4


def counted(
    spec: RunSpec,
    folder: RunFolder,
    identity: RunIdentity,
    *,
    stop_file: Path,
    on_scores: Any = None,
) -> Summary:
    """An `execute` that scores by the noise at each epoch, and ends where it is pruned."""
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / "starts").open("a") as file:
        file.write("1\n")
    left = summary(spec)
    for epoch in range(1, EPOCHS):
        time.sleep(RUN_S / EPOCHS)
        values = {"val/knn_top1": left.metrics["val/knn_top1"] * epoch / EPOCHS}
        with folder.scores.open("a") as file:
            file.write(json.dumps({"epoch": epoch, "values": values}) + "\n")
        if on_scores:
            on_scores(epoch, values)
        if (wish := read_json(folder.prune)) is not None:
            raise Stopped(wish["intent"], epoch)
    return left


if __name__ == "__main__":
    study, settings = load_spec(Path(sys.argv[1])), Settings()
    assert isinstance(study, SweepSpec | ComparisonSpec)
    assert settings.job_id is not None
    job = settings.folders.job(settings.job_id)
    job.root.mkdir(parents=True, exist_ok=True)
    begun = Start(settings.job_id, job, 1, settings.tracking_uri)
    sys.exit(run_study(study, begun, schedule=run_in_tune, execute=counted))
