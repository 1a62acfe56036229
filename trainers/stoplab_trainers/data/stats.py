"""Count what shards hold: samples, classes, sizes. Listed shards are not opened for it.

python -m stoplab_trainers.data.stats PLACE... [--storage secret://NAME] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stoplab_platform.exits import Exit
from stoplab_platform.remote import Options
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_trainers.data.copies import Shard
from stoplab_trainers.data.listing import class_names, place_of, read_rows, rows, rows_by_shard
from stoplab_trainers.data.tool import run
from stoplab_trainers.data.urls import shards_of

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, count, tell."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.data.stats")
    parser.add_argument("places", nargs="+")
    parser.add_argument("--storage")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return run(options.json, lambda: _stats(options), _spelled)


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    settings = Settings()
    secret = Secrets(settings).options(options.storage) if options.storage else {}
    shards = shards_of(options.places, settings.folders.cache, options.storage)
    rows = _rows_of(shards, secret)
    sizes = rows["bytes"].to_numpy()
    labels = rows["label"].drop_null().to_numpy()
    found, times = np.unique(labels, return_counts=True)
    counts = dict(zip(found.tolist(), times.tolist(), strict=True))
    names = class_names(shards[0].name, secret)
    spread = {name: int(np.quantile(sizes, q)) for name, q in QUANTILES.items()}
    return {
        "shards": len(shards),
        "samples": len(rows),
        "bytes_of_images": int(sizes.sum()),
        "image_bytes": spread,
        "unlabelled": rows["label"].null_count,
        "with_mask": len(rows) - rows["mask_bytes"].null_count,
        "classes": {
            names[number] if number < len(names) else str(number): counts.get(number, 0)
            for number in sorted({*range(len(names)), *counts})
        },
    }


def _rows_of(shards: Sequence[Shard], options: Options) -> pa.Table:
    """A row a sample (`listing.COLUMNS`): from the `index.parquet` beside them, or the tars."""
    folders = {place_of(shard.name)[0] for shard in shards if shard.listed}
    found = {folder: read_rows(folder, options) for folder in folders}
    known = {folder: rows_by_shard(table) for folder, table in found.items() if table is not None}
    tables = []
    for shard in shards:
        folder, file = place_of(shard.name)
        own = known.get(folder, {}).get(file)
        # A table that was not made with this listing tells nothing.
        fits = shard.listed and own is not None and len(own) == shard.listed.samples
        tables.append(own if fits else rows(file, shard.index()))
    return pa.concat_tables(tables)


def _spelled(told: dict[str, Any]) -> str:
    lines = ["{shards} shards, {samples} samples, {bytes_of_images} bytes of images".format(**told)]
    lines.append("bytes of an image: {min} to {max}, median {median}".format(**told["image_bytes"]))
    lines.append("{unlabelled} without a label, {with_mask} with a mask".format(**told))
    lines += [f"{count:8d}  {name}" for name, count in told["classes"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
