"""Says what is wrong with a run that goes on: in its log, on it in the tracker, beside the job."""

from __future__ import annotations

import logging

from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import Tracker
from stoplab_trainers.diagnostics.alarm import TAGS, Finding
from stoplab_trainers.diagnostics.coverage import Coverage

log = logging.getLogger("stoplab.train")


def tell(found: Finding, folder: RunFolder, tracker: Tracker) -> None:
    """Once for each kind, whatever attempt found it; the newest one stands in front."""
    known = read_json(folder.alarm) or {}
    earlier = [*known.pop("earlier", []), *([known] if known else [])]
    # What a run has told beyond the step it goes on from, it will tell again.
    earlier = [one for one in earlier if one["step"] <= found.step]
    if any(one.get("kind", "collapsed") == found.kind for one in earlier):
        return
    log.warning("%s", found.message)
    tracker.tags({TAGS[found.kind]: f"step {found.step}, {found.measure}"})
    write_json(folder.alarm, {**found.plain(), "earlier": earlier})


def starvation(seen: Coverage) -> Finding | None:
    """What the masks starve; None as a rule."""
    if not (faults := seen.faults()):
        return None
    stats = seen.stats()
    measures = ("mask/context_coverage", "mask/target_coverage")
    measure = next((name for name in measures if stats[name] == 0), "mask/shortest_context")
    text = f"the masks starve the run: {'; '.join(faults)}"
    return Finding("starved", 0, measure, stats[measure], None, None, text)
