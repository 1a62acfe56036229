"""Our loader at 96 pixels, full and scaled, against the published one, in seconds of the processor.

    python benchmarks/loader_96.py [--json] [--quick]

Sides and baseline are those of `loader_224.py`. The document's own ratio is that of
`data.decode: scaled`, whose crops agree to 30 dB in the median (`psnr_db`); that of `full`, which
agrees to 50 dB or more, is among the cases, and both as they are used (no bars).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from harness import Result, arguments, compare, tell
from loaders import LEAST_DB, Spread, closeness, cpu_seconds, official, ours
from photos import photos

SIDE = 96


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    number, rounds = (16, 2) if arguments().quick else (256, 8)
    results, psnr_db = measure(number, rounds)
    tell("loader_96", results, full=results[1].ratio, psnr_db=psnr_db)


def measure(number: int, rounds: int) -> tuple[list[Result], Spread]:
    """The pace of the scaled loader over the baseline's, that of the full one; the PSNR (dB)."""
    folder = photos(number)
    scaled, full = (closeness(folder, SIDE, how, min(number, 64)) for how in ("scaled", "full"))
    alone, as_used = ((official(folder, SIDE, workers=n), n) for n in (0, 1))
    paces = [
        compare(
            name, baseline, ours(folder, SIDE, decode, threads=threads), rounds,
            floor=floor, aim=aim, clock=cpu_seconds,
        )
        for name, decode, floor, aim, (baseline, threads) in (
            ("loader_96", "scaled", 2.2, 2.7, alone),
            ("full", "full", 1.8, None, alone),
            ("scaled_as_used", "scaled", None, None, as_used),
            ("full_as_used", "full", None, None, as_used),
        )
    ]  # fmt: skip
    near, same = scaled["median"] >= 30, full["min"] >= LEAST_DB
    held = (near, same, near, same)
    return [
        replace(pace, passed=pace.passed and holds) for pace, holds in zip(paces, held, strict=True)
    ], scaled


if __name__ == "__main__":
    main()
