"""Our loader at 96 pixels, full and scaled, against the published one, in CPU time of one thread.

    python benchmarks/loader_96.py [--json] [--quick]

Sides and baseline are those of `loader_224.py`. The document's own ratio is that of
`data.decode: scaled`, whose crops agree to 30 dB (`psnr_db`); `full` is among the cases.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from harness import Result, arguments, compare, tell
from loaders import closeness, official, ours
from photos import photos

SIDE = 96
LEAST_DB = {"full": 50, "scaled": 30}


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    number, rounds = (16, 2) if arguments().quick else (256, 8)
    results, least_db = measure(number, rounds)
    tell("loader_96", results, full=round(results[1].ratio, 3), psnr_db=round(least_db, 1))


def measure(number: int, rounds: int) -> tuple[list[Result], float]:
    """The scaled loader's pace over the baseline's, the full one's, the scaled one's least PSNR."""
    folder = photos(number)
    least_db = {
        decode: float(closeness(folder, SIDE, decode, min(number, 64)).min()) for decode in LEAST_DB
    }
    bounds = {"scaled": ("loader_96", 2.2, 2.7), "full": ("full", 1.8, None)}
    results = []
    for decode, (name, floor, aim) in bounds.items():
        pace = compare(
            name, official(folder, SIDE), ours(folder, SIDE, decode), rounds, floor=floor, aim=aim,
            clock=time.process_time,
        )  # fmt: skip
        same = least_db[decode] >= LEAST_DB[decode]
        results.append(replace(pace, passed=pace.passed and same))
    return results, least_db["scaled"]


if __name__ == "__main__":
    main()
