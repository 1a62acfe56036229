"""Proof that a comparison's arms were pairs, and the name of the baseline they were held to.

Each run hashes what it was really fed. Inside a block the hashes must agree, except for streams
that the arms change on purpose: those only share their seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stoplab_platform.ledger import Cell
from stoplab_platform.specs import ComparisonSpec, RunSpec

EQUAL, SEED_ONLY, BROKEN = "equal", "seed-paired", "broken"
SHORT = 12  # characters of a hash that people see


def certify(spec: ComparisonSpec, blocks: Mapping[int, Sequence[Cell]]) -> dict[str, Any]:
    """Check every block (seed to the cells of its arms); JSON types.

    `passed` is false, with `reasons`, where a stream differs between arms whose specs decide it
    alike, or where a run left no hashes. A stream that an override does change (masks by
    `masking`, order by `data.shuffle` or `optim.batch_size`, weights by `model`) is what that
    comparison is about, or comes along with it: it is labelled `seed-paired` and warned of, not
    refused, for the blocks stay independent and the interval over them valid. It only is as wide
    as pairs of seeds make it.
    """
    decided = {arm: _decided_by(spec.arm(arm, spec.seeds[0])) for arm in spec.arms}
    streams = dict.fromkeys(REQUIRED, EQUAL)
    reasons: list[str] = []
    for seed, cells in blocks.items():
        for stream in sorted({*REQUIRED, *(key for cell in cells for key in cell.certificate)}):
            found = {str(cell.arm): cell.certificate.get(stream) for cell in cells}
            alike = _alike(stream, found, decided)
            broken = [one for one in alike if _is_broken(one)]
            reasons += [_reason(seed, stream, one) for one in broken]
            state = BROKEN if broken else SEED_ONLY if len(alike) > 1 else EQUAL
            streams[stream] = max(streams.get(stream, EQUAL), state, key=_SEVERITY.index)
    return {
        "passed": bool(blocks) and not reasons,
        "pairing": SEED_ONLY if SEED_ONLY in streams.values() else "paired",
        "streams": streams,
        "blocks_checked": len(blocks),
        "reasons": reasons if blocks else ["no block has all of its arms yet"],
    }


def baseline(run: RunSpec) -> str | None:
    """Which named baseline a run's positions are: the YAMLs of trainers/configs/baselines.

    `ijepa`: deterministic with the mask token, or stoplab's StoP at noise_std 0, which is the
    same. `stop_sigma0`: the authors' StoP at noise 0. `official_off`: the authors' code with its
    flag off, which has no mask token and is not I-JEPA. None: no baseline.
    """
    positions = run.positions
    official = positions.parametrization == "official"
    if positions.kind == "deterministic":
        return "official_off" if official else "ijepa"
    if positions.noise_std == 0:
        return "stop_sigma0" if official else "ijepa"
    return None


REQUIRED = ("init", "samples", "masks")
_SEVERITY = (EQUAL, SEED_ONLY, BROKEN)


def _decided_by(run: RunSpec) -> dict[str, Any]:
    """What of a spec, besides the seed, decides each stream."""
    data, optim, compute = run.data, run.optim, run.compute
    schedule = (data.train, data.shuffle, optim.batch_size, optim.epochs)
    return {
        # A covariance of its own brings parameters of its own.
        "init": (run.model, run.grid, getattr(run.positions, "covariance", "learned")),
        "samples": schedule,
        "crops": (schedule, data.image_size, data.crop_scale, data.hflip, data.blur,
                  data.grayscale),
        "masks": (schedule, run.masking, run.grid),
        "precision": (compute.precision, compute.gpus_per_worker > 0),
        "threads": compute.resolved_threads,
        "device": compute.gpus_per_worker > 0,
        "data": data.train,
    }  # fmt: skip


def _alike(
    stream: str, found: Mapping[str, str | None], decided: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str | None]]:
    """The hashes of a block's arms, in groups whose specs decide the stream alike."""
    groups: list[tuple[Any, dict[str, str | None]]] = []
    for arm, value in found.items():
        by = decided[arm].get(stream)
        group = next((one for key, one in groups if key == by), None)
        if group is None:
            groups.append((by, group := {}))
        group[arm] = value
    return [group for _, group in groups]


def _is_broken(group: Mapping[str, str | None]) -> bool:
    return None in group.values() or len(set(group.values())) > 1


def _reason(seed: int, stream: str, found: Mapping[str, str | None]) -> str:
    missing = [arm for arm, value in found.items() if value is None]
    if missing:
        return f"seed {seed}: {', '.join(missing)} left no record of its {stream}"
    values = ", ".join(f"{arm} {str(value)[:SHORT]}" for arm, value in found.items())
    return (
        f"seed {seed}: the arms differ in {stream}, which their overrides do not touch ({values})"
    )
