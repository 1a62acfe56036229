"""Named baselines: the YAMLs of trainers/configs/baselines."""

from __future__ import annotations

from stoplab_platform.specs.objective import IjepaObjective
from stoplab_platform.specs.run import RunSpec


def baseline(run: RunSpec) -> str | None:
    """Which named baseline a run's positions are: the YAMLs of trainers/configs/baselines.

    `ijepa`: deterministic with the mask token, or stoplab's StoP at noise_std 0, which is the
    same. `stop_sigma0`: the authors' StoP at noise 0. `official_off`: the authors' code with its
    flag off, which has no mask token and is not I-JEPA. None: no baseline, as with other targets
    or a learned table.
    """
    positions = run.positions
    if run.objective != IjepaObjective(kind="ijepa") or positions.table == "learned":
        return None
    official = positions.parametrization == "official"
    if positions.kind == "deterministic":
        return "official_off" if official else "ijepa"
    if positions.noise_std == 0:
        return "stop_sigma0" if official else "ijepa"
    return None
