"""Our reading of shards against webdataset's reader, in CPU time of one thread.

    python benchmarks/tar.py [--json] [--quick]

Ours: the bytes of every image, in the order of a shuffled epoch, through the shards' index, which
is made once for a set and kept. The baseline: `webdataset.WebDataset` over the same shards, in
their order, each sample a dictionary of its members' bytes. Nothing is decoded; the shards (see
`photos.py`) are in the page cache.
"""

from __future__ import annotations

import time

import webdataset
from harness import Result, arguments, compare, tell
from loaders import opened
from photos import photos

from stoplab_trainers.data.plan import Plan

PASSES = 4


def main() -> None:
    """Measure, print."""
    number, rounds = (16, 2) if arguments().quick else (256, 12)
    tell("tar", [measure(number, rounds)])


def measure(number: int, rounds: int) -> Result:
    """Our pace over webdataset's."""
    folder = photos(number)
    shards = opened(folder)
    plan = Plan(shards.counts, len(shards), seed=0)
    urls = sorted(str(path) for path in (folder / "shards").glob("*.tar"))

    def theirs() -> int:
        feed = webdataset.WebDataset(urls, shardshuffle=False).repeat(PASSES)
        return sum(len(sample["jpg"]) for sample in feed)

    def ours() -> int:
        ids = [plan.ids(step) for step in range(PASSES)]
        return sum(len(shards.read(int(sample_id))) for epoch in ids for sample_id in epoch)

    assert theirs() == ours(), "both read every image"
    return compare("tar", theirs, ours, rounds, floor=2, aim=3, clock=time.process_time)


if __name__ == "__main__":
    main()
