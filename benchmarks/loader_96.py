"""Our loader at 96 pixels, full and scaled, against the published one, in CPU time of one thread.

    python benchmarks/loader_96.py [--json] [--quick]

Sides and baseline are those of `loader_224.py`. The document's own ratio is that of
`data.decode: scaled`, whose crops agree to 30 dB in the median (`psnr_db`); that of `full`, which
agrees to 50 dB or more, is among the cases.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from harness import Result, arguments, compare, tell
from loaders import LEAST_DB, Spread, closeness, official, ours
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
    baseline = official(folder, SIDE)
    paces = [
        compare(
            name, baseline, ours(folder, SIDE, decode), rounds, floor=floor, aim=aim,
            clock=time.process_time,
        )
        for name, decode, floor, aim in (
            ("loader_96", "scaled", 2.2, 2.7),
            ("full", "full", 1.8, None),
        )
    ]  # fmt: skip
    near, same = scaled["median"] >= 30, full["min"] >= LEAST_DB
    return [
        replace(paces[0], passed=paces[0].passed and near),
        replace(paces[1], passed=paces[1].passed and same),
    ], scaled


if __name__ == "__main__":
    main()
