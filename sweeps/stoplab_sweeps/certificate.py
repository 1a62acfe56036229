"""Proof that a comparison's arms were pairs.

Each run hashes what it was really fed. Inside a block the hashes must agree, except for streams
that the arms change on purpose: those only share their seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stoplab_platform.ledger import Cell
from stoplab_platform.specs import ComparisonSpec, RunSpec

EQUAL, SEED_ONLY, BROKEN = "equal", "seed-paired", "broken"
SHORT = 12  # characters of a hash that people see


def certify(spec: ComparisonSpec, blocks: Mapping[int, Sequence[Cell]]) -> dict[str, Any]:
    """Check every block (seed to the cells of its arms); JSON types.

    `passed` is false, with `reasons`, where a stream differs between arms whose specs decide it
    alike, where a run left no hashes, or where unlike versions of a protocol judged. Where an
    override changes a stream (masks by `masking`, order by `data.shuffle` or `optim.batch_size`,
    weights by `model`), that is what the comparison is about, or comes along with it: it is
    labelled `seed-paired` and warned of, not refused, for the blocks stay independent and the
    interval over them valid. It only is as wide as pairs of seeds make it. A weight that one
    arm's positions have and the other's lack is no difference: those that both have must agree.
    """
    decided = {arm: _decided_by(spec.arm(arm, spec.seeds[0])) for arm in spec.arms}
    streams = dict.fromkeys(REQUIRED, EQUAL)
    reasons: list[str] = []
    for seed, cells in blocks.items():
        records = {str(cell.arm): cell.certificate for cell in cells}
        for stream in _streams(records):
            broken = [one for one in _alike(stream, records, decided) if not _agree(stream, one)]
            reasons += [_reason(seed, stream, one) for one in broken]
            state = BROKEN if broken else EQUAL if _agree(stream, records) else SEED_ONLY
            streams[stream] = max(streams.get(stream, EQUAL), state, key=_SEVERITY.index)
    reasons += _judged_apart(blocks)
    if moved := list(_other_starts(blocks)):
        reasons += moved
        streams[START] = BROKEN
    return {
        "passed": bool(blocks) and not reasons,
        "pairing": SEED_ONLY if SEED_ONLY in streams.values() else "paired",
        "streams": streams,
        "blocks_checked": len(blocks),
        "reasons": reasons if blocks else ["no block has all of its arms yet"],
    }


REQUIRED = ("init", "samples", "masks")
START = "init_from"  # the file of weights that a run began from
YOUNG = ("judged", START)  # streams of which runs of earlier releases left no record
PART = "/"  # in the name of a part of a stream: init/shared
_SEVERITY = (EQUAL, SEED_ONLY, BROKEN)

Record = Mapping[str, str]
"""A run's hashes, by stream and by part of a stream."""


def _decided_by(run: RunSpec) -> dict[str, Any]:
    """What of a spec, besides the seed, decides each stream."""
    data, optim, compute = run.data, run.optim, run.compute
    official = getattr(run.masking, "sampler", "fixed") == "official"
    # Crops are hashed worker by worker, or one by one where the number of workers may change.
    shared = compute.workers if compute.min_workers is None else "one by one"
    schedule = (data.train, data.shuffle, optim.batch_size, optim.epochs)
    return {
        "init": (run.model, run.grid, run.objective.output_width(run.model.sizes())),
        # Of records without parts: weights that these positions alone have count there too.
        "init/": (run.positions.parametrization, getattr(run.positions, "covariance", "learned")),
        "samples": schedule,
        "crops": (schedule, data.image_size, data.crop_scale, data.hflip, data.blur,
                  data.grayscale, shared),
        # The official sampler cuts each worker's masks to the smallest of its own.
        "masks": (schedule, run.masking, run.grid, compute.workers if official else None),
        "precision": (compute.precision, compute.gpus_per_worker > 0),
        "threads": compute.resolved_threads,
        "device": compute.gpus_per_worker > 0,
        "data": data.train,
        "judged": data.image_size,
        START: run.model.init_from,
    }  # fmt: skip


def _judged_apart(blocks: Mapping[int, Sequence[Cell]]) -> list[str]:
    """Blocks that unlike versions of the protocols judged make no one table."""
    found: dict[str, list[int]] = {}
    for seed, cells in blocks.items():
        for version in {cell.certificate.get("protocols", "none told") for cell in cells}:
            found.setdefault(version, []).append(seed)
    if len(found) < 2:
        return []
    each = "; ".join(f"{version} in {', '.join(map(str, of))}" for version, of in found.items())
    return [
        f"runs were judged by unlike versions of the protocols (seeds: {each}); run the older "
        "ones again"
    ]


def _streams(records: Mapping[str, Record]) -> list[str]:
    told = {key for record in records.values() for key in record if PART not in key}
    return sorted({*REQUIRED, *told})


def _alike(
    stream: str, records: Mapping[str, Record], decided: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Record]]:
    """A block's arms in groups whose specs decide the stream alike."""
    told = all(_parts(stream, record) for record in records.values())
    keys = [stream] if told else [stream, stream + PART]
    groups: list[tuple[Any, dict[str, Record]]] = []
    for arm, record in records.items():
        by = [decided[arm].get(key) for key in keys]
        group = next((one for key, one in groups if key == by), None)
        if group is None:
            groups.append((by, group := {}))
        group[arm] = record
    return [group for _, group in groups]


def _agree(stream: str, records: Mapping[str, Record]) -> bool:
    """Whether arms were fed the same: as a whole, or in every part that several of them have."""
    values = {record.get(stream) for record in records.values()}
    if stream in YOUNG:
        values.discard(None)
        if not values:
            return True
    if None in values or len(values) == 1:
        return None not in values
    parts = [_parts(stream, record) for record in records.values()]
    names = set().union(*parts)
    return all(parts) and all(
        len({part[name] for part in parts if name in part}) == 1 for name in names
    )


def _other_starts(blocks: Mapping[int, Sequence[Cell]]) -> Iterator[str]:
    """Arms that began from one file in some blocks and from another in others.

    It lay at the same path, so only the hashes tell: a mean over such blocks is of two things.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for seed, cells in blocks.items():
        for cell in cells:
            if START in cell.certificate:
                seeds = found.setdefault(str(cell.arm), {}).setdefault(cell.certificate[START], [])
                seeds.append(seed)
    for arm, starts in found.items():
        if len(starts) > 1:
            told = "; ".join(
                f"{sha[:SHORT]} in seeds {', '.join(map(str, seeds))}"
                for sha, seeds in starts.items()
            )
            yield f"{arm} began from other weights in some blocks, by {START}: {told}"


def _parts(stream: str, record: Record) -> Record:
    return {key: value for key, value in record.items() if key.startswith(stream + PART)}


def _reason(seed: int, stream: str, records: Mapping[str, Record]) -> str:
    found = {arm: record.get(stream) for arm, record in records.items()}
    missing = [arm for arm, value in found.items() if value is None]
    if missing:
        return f"seed {seed}: {', '.join(missing)} left no record of its {stream}"
    values = ", ".join(f"{arm} {str(value)[:SHORT]}" for arm, value in found.items())
    return (
        f"seed {seed}: the arms differ in {stream}, which their overrides do not touch ({values})"
    )
