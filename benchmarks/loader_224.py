"""Our loader at 224 pixels against the published one, in seconds of the processor.

    python benchmarks/loader_224.py [--json] [--quick]

Ours: `data.decode: full`; shards, simplejpeg, torch's antialiased resize of uint8, normalised.
The baseline: torchvision's ImageFolder (PIL), RandomResizedCrop, ToTensor and Normalize under
torch's DataLoader. Both read photos of `photos.py` from the page cache and give normalised float
batches of 64, in one thread of one process; crops of the same box agree to 50 dB or more.
`as_used` (no bar) is the DataLoader with a worker process, ours with a thread that decodes.
`of_decode` is the pace up to the uint8 batch over simplejpeg's alone: what is left to gain.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from harness import Result, arguments, compare, tell
from loaders import LEAST_DB, Spread, closeness, cpu_seconds, official, ours, pure_decode
from photos import photos

SIDE = 224


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    number, rounds = (16, 2) if arguments().quick else (256, 8)
    results, psnr_db = measure(number, rounds)
    tell("loader_224", results, of_decode=results[1].ratio, psnr_db=psnr_db)


def measure(number: int, rounds: int) -> tuple[list[Result], Spread]:
    """Ours over the baseline's pace, ours over the decoder's; the PSNR (dB)."""
    folder = photos(number)
    psnr_db = closeness(folder, SIDE, "full", min(number, 64))
    pace = compare(
        "loader_224", official(folder, SIDE), ours(folder, SIDE), rounds,
        floor=1.7, aim=2.1, clock=cpu_seconds,
    )  # fmt: skip
    as_used = compare(
        "as_used", official(folder, SIDE, workers=1), ours(folder, SIDE, threads=1),
        rounds, clock=cpu_seconds,
    )  # fmt: skip
    uint8 = ours(folder, SIDE, normalise=False)
    of_decode = compare(
        "of_decode", pure_decode(folder), uint8, rounds, floor=0.55, aim=0.65, clock=cpu_seconds
    )
    same = psnr_db["min"] >= LEAST_DB
    return [replace(pace, passed=pace.passed and same), of_decode, as_used], psnr_db


if __name__ == "__main__":
    main()
