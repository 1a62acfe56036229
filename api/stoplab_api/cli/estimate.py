"""`stoplab estimate`: what a spec will take, from the lab's own runs or from assumptions."""

from __future__ import annotations

from typing import Annotated

import typer

from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import (
    AsJson,
    Sets,
    SpecFile,
    print_json,
    print_table,
    print_text,
    reported,
    say,
)
from stoplab_api.cli.submit import load_here
from stoplab_api.client import Unreachable
from stoplab_api.findings import EstimateBody, RangeBody
from stoplab_api.local import find
from stoplab_platform.admission import capacity
from stoplab_platform.estimates import estimate as estimated
from stoplab_platform.rates import measured
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec

HOUR, MINUTE = 1.0, 1 / 60


@reported
def estimate(
    file: SpecFile,
    changes: Sets = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of an epoch, where they cannot be counted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a spec will take: parameters, FLOPs, memory, hours, and what they rest on.

    The running lab is asked; without one, this machine's folder of finished runs.
    """
    found = _asked(load_here(file, changes), images)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _asked(spec: AnySpec, images: int | None) -> EstimateBody:
    settings = Settings()
    if settings.api_url is not None or find(settings.folders) is not None:
        try:
            with connect() as client:
                return client.estimate(spec, images=images)
        except Unreachable as error:
            say(f"{error}; this machine's own runs are asked")
    jobs = settings.folders.jobs
    names = sorted((path.name for path in jobs.iterdir()), reverse=True) if jobs.is_dir() else []
    known = measured(settings.folders.job(name) for name in names)
    found = estimated(spec, capacity(settings), known, images=images)
    return EstimateBody.model_validate(found.plain())


def _print(found: EstimateBody) -> None:
    many = f"{found.runs} runs, {found.concurrent} at a time" if found.runs > 1 else None
    lines = [f"{found.kind} {found.name}", *([many] if many else [])]
    if found.parameters is not None:
        own = found.parameters
        lines.append(
            f"{own.trained / 1e6:.2f} M parameters trained "
            f"(encoder {own.encoder / 1e6:.2f} M, predictor {own.predictor / 1e6:.2f} M)"
        )
    if found.flops_per_image is not None:
        lines.append(f"{_prefixed(found.flops_per_image.train)}FLOPs an image, forward and back")
    for line in lines:
        print_text(line)
    rows = [
        ("images/s of a run", *_numbers(found.samples_per_s)),
        ("memory of a worker", *_bytes(found)),
        ("one run", *_times(found.run_hours)),
        ("on the clock", *_times(found.wall_hours)),
        ("CPU-hours", *_numbers(found.cpu_hours)),
        ("GPU-hours", *_numbers(found.gpu_hours)),
    ]
    print_table(("", "low", "expected", "high"), rows)
    print_text(f"{found.confidence}: {found.rests_on.sentence}")
    for fact in found.rests_on.facts:
        print_text(f"  {fact}")


def _numbers(band: RangeBody | None) -> tuple[str | None, ...]:
    if band is None:
        return None, None, None
    parts = (band.low, band.value, band.high)
    return tuple(f"{part:,.0f}" if part >= 100 else f"{part:.3g}" for part in parts)


def _bytes(found: EstimateBody) -> tuple[str | None, ...]:
    if found.memory is None:
        return None, None, None
    total = found.memory.total
    return tuple(f"{part / 2**30:.2f} GiB" for part in (total.low, total.value, total.high))


def _times(band: RangeBody | None) -> tuple[str | None, ...]:
    if band is None:
        return None, None, None
    return _time(band.low), _time(band.value), _time(band.high)


def _time(hours: float) -> str:
    if hours >= HOUR:
        return f"{hours:.3g} h"
    return f"{hours * 60:.3g} min" if hours >= MINUTE else f"{hours * 3600:.2g} s"


def _prefixed(number: float) -> str:
    """With a metric prefix: `1.4 G`."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}"
    return f"{number:.3g} "
