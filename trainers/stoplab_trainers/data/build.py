"""Build shards, or the index of those that are there.

    python -m stoplab_trainers.data.build SOURCE --out FOLDER [--name train] [--shard-size 1000]
        [--shuffle 0|none] [--threads N] [--image C] [--label C] [--key C] [--force] [--json]
    python -m stoplab_trainers.data.build --index FOLDER [--json]

SOURCE is one of

- a folder of images. Where all lie in sub-folders, the first one's name is the class.
- a manifest, `.csv` or `.parquet`, with the columns `path` (seen from the manifest) and, if there
  are such, `label` (a class index, or a name) and `key`.
- a folder of `Dataset.save_to_disk` of Hugging Face's `datasets` (one split), or Parquet files
  whose image column holds files' bytes; classes are those of its features.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow.csv import ConvertOptions

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.exits import Exit
from stoplab_platform.settings import Settings
from stoplab_trainers.data.building import Recipe, build, described
from stoplab_trainers.data.copies import shard_of
from stoplab_trainers.data.listing import ListedShard, Listing, add_to_listing, own_listing
from stoplab_trainers.data.sources import Source, files_below, files_of_manifest, holds_files
from stoplab_trainers.data.tables import Table, noted, readable
from stoplab_trainers.data.tool import bar, run
from stoplab_trainers.data.urls import ENDINGS, shards_in

COLUMNS = ("image", "label", "key")
TEXT = pa.string()
SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])")


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, build, say what lies where."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.data.build")
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", default="train")
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--shuffle")
    parser.add_argument("--threads", type=int)
    for name in COLUMNS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return run(
        options.json, lambda: _index(options) if options.index else _build(options), _spelled
    )


def source_of(place: Path, columns: Mapping[str, str]) -> Source:
    """What lies at a path; DataError where it is nothing that shards can be built of.

    ``columns``: names of the columns `image`, `label`, `key`, where they are not the usual ones.
    """
    if not place.exists():
        raise DataMissing(f"{place} does not exist")
    if place.is_file():
        return _of_file(place, columns)
    if (place / "dataset_dict.json").exists():
        folders = sorted(one.name for one in place.iterdir() if one.is_dir())
        raise DataError(f"{place} holds the splits {', '.join(folders)}: name one of their folders")
    if not (files := _tables(place)):
        return files_below(place)
    splits = {found[0] for file in files if (found := SPLIT.match(file.name))}
    if len(splits) > 1:
        raise DataError(
            f"{place} holds tables of several splits ({', '.join(sorted(splits))}): give those of "
            "each split a folder of its own; links will do"
        )
    return Table(files, columns)


def _tables(folder: Path) -> list[Path]:
    """Those that `Dataset.save_to_disk` names, for others beside them are copies; or all."""
    saved = noted(folder / "state.json").get("_data_files", [])
    return (
        [folder / one["filename"] for one in saved]
        or sorted(folder.glob("*.arrow"))
        or sorted(folder.glob("*.parquet"))
    )


def _of_file(path: Path, columns: Mapping[str, str]) -> Source:
    with readable(path):
        if path.suffix == ".csv":
            # As they are written: a key may be 0001.
            words = dict.fromkeys([columns.get("image", "path"), columns.get("key", "key")], TEXT)
            read = pyarrow.csv.read_csv(path, convert_options=ConvertOptions(column_types=words))
            return files_of_manifest(path, read, columns)
        if path.suffix != ".parquet":
            raise DataError(f"{path}: give a folder, a .csv or a .parquet file")
        schema, named = pq.read_schema(path), columns.get("image", "path")
        if named in schema.names and not holds_files(schema.field(schema.names.index(named)).type):
            return files_of_manifest(path, pq.read_table(path), columns)
    return Table([path], columns)


def _build(options: argparse.Namespace) -> dict[str, Any]:
    if options.source is None or options.out is None:
        raise DataError("give a source and --out FOLDER")
    if options.shard_size < 1 or (options.threads or 1) < 1:
        raise DataError("--shard-size and --threads must be 1 or more")
    columns = {name: value for name in COLUMNS if (value := getattr(options, name))}
    source = source_of(options.source, columns)
    recipe = Recipe(options.name, options.shard_size, _seed(options.shuffle, source))
    with bar("samples", len(source), quiet=options.json) as advance:
        listing = build(
            source,
            options.out.absolute(),
            recipe,
            threads=options.threads,
            force=options.force,
            told=lambda shard: advance(shard.samples),
        )
    made = listing.sets[options.name]
    return {"set": options.name, **_told(options.out, listing), **made.model_dump(mode="json")}


def _seed(given: str | None, source: Source) -> int | None:
    if given is None:
        return 0 if source.in_any_order else None
    if given == "none":
        return None
    if not given.isdecimal():
        raise DataError(f"--shuffle: {given!r} must be a seed (0, 1, …) or `none`")
    return int(given)


def _index(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.index.absolute()
    if not folder.is_dir():
        raise DataMissing(f"{folder} is no folder")
    if not (paths := shards_in(folder)):
        raise DataMissing(f"{folder} holds no shard ({', '.join(ENDINGS)})")
    own_listing(folder)
    settings = Settings()
    shards = [
        shard_of(str(path), settings.folders.cache, None, settings.cache_bytes, {})
        for path in paths
    ]
    made: list[Any] = []
    with (
        bar("shards", len(paths), quiet=options.json) as advance,
        ThreadPoolExecutor(options.threads) as pool,
    ):
        for one in pool.map(lambda shard: described(Path(shard.name), shard.path()), shards):
            made.append(one)
            advance(1)
    listing = add_to_listing(folder, made)
    samples, size = (sum(getattr(s, what) for s in listing.shards) for what in ("samples", "bytes"))
    return {"set": None, **_told(folder, listing), "samples": samples, "bytes": size}


def _told(folder: Path, listing: Listing) -> dict[str, Any]:
    shards: tuple[ListedShard, ...] = listing.shards
    return {"folder": str(folder), "shards": [shard.model_dump(mode="json") for shard in shards]}


def _spelled(told: dict[str, Any]) -> str:
    return (
        f"{told['samples']} samples, {told['bytes']} bytes, {len(told['shards'])} shards in the "
        f"index of {told['folder']}"
    )


if __name__ == "__main__":
    sys.exit(main())
