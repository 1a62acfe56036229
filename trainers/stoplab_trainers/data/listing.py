"""`index.json`: what lies in a folder of shards, so that nobody has to open them to know.

    {"version": 1, "sets": {"train": {"samples": 1200, "bytes": 9000000, "classes": ["cat", …]}},
     "shards": [{"name": "train-000000.tar", "samples": 1000, "bytes": …, "sha256": "…",
                 "digest": "…"}, …]}

One file for all sets of its folder. `bytes` and `sha256` are of the file as it lies there, packed
or not; `digest` is `ShardIndex.digest`, of what the shard holds. Beside it lies `index.parquet`, a
row a sample with its offset in the (unpacked) tar.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.files import write_atomic
from stoplab_platform.remote import Options, Remote
from stoplab_trainers.data.cache import locked, replacing
from stoplab_trainers.data.index import ShardIndex

log = logging.getLogger("stoplab.data")

NAME = "index.json"
ROWS = "index.parquet"
COLUMNS = pa.schema([
    ("shard", pa.string()), ("key", pa.string()), ("label", pa.int64()), ("offset", pa.int64()),
    ("bytes", pa.int64()), ("mask_offset", pa.int64()), ("mask_bytes", pa.int64()),
])  # fmt: skip
"""Of `index.parquet`; label and mask are null where a sample has none."""
Sha256 = str


class ListedShard(BaseModel):
    """One shard, as its listing knows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its file name."""
    samples: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: Sha256 = Field(pattern="^[0-9a-f]{64}$")
    digest: Sha256 = Field(pattern="^[0-9a-f]{64}$")


class ListedSet(BaseModel):
    """The shards of one build."""

    model_config = ConfigDict(frozen=True)

    samples: int
    bytes: int
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their indices."""
    recipe: Sha256 | None = None
    """What it was made of and how (a digest); the same recipe is not built twice."""


class Listing(BaseModel):
    """What an `index.json` holds."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    sets: Mapping[str, ListedSet] = {}
    shards: tuple[ListedShard, ...] = ()

    def by_name(self) -> dict[str, ListedShard]:
        """The shards by their file names."""
        return {shard.name: shard for shard in self.shards}


def listed(names: Iterable[str], options: Options) -> dict[str, ListedShard]:
    """Those shards, by path or URL, that the listings beside them know."""
    places = {name: place_of(name) for name in names}
    folders = {folder for folder, _ in places.values()}
    known = {folder: read_listing(folder, options).by_name() for folder in folders}
    return {
        name: known[folder][file]
        for name, (folder, file) in places.items()
        if file in known[folder]
    }


def place_of(name: str) -> tuple[str, str]:
    """The folder and the file of a path or URL; what follows a URL's `?` is of neither."""
    folder, _, file = (name.partition("?")[0] if "://" in name else name).rpartition("/")
    return folder, file


def class_names(shard: str, options: Options) -> Sequence[str]:
    """Those of the set of a shard (a path or URL), in the order of their indices; () if unknown."""
    folder, file = place_of(shard)
    known = read_listing(folder, options).sets.get(file.rpartition("-")[0])
    return known.classes or () if known else ()


def read_listing(folder: str, options: Options) -> Listing:
    """The listing of a folder, an empty one where it has none of ours."""
    place = f"{folder}/{NAME}" if folder else NAME
    try:
        text = Remote(place, options).read() if "://" in place else Path(place).read_bytes()
    except (FileNotFoundError, NotADirectoryError, DataMissing):
        return Listing()
    except DataError as error:  # one may be allowed to read shards and not to look for others
        log.warning("%s: not read, the shards are looked into instead: %s", place, error)
        return Listing()
    try:
        return Listing.model_validate_json(text)
    except ValidationError:
        log.warning("%s is no index of stoplab's; the shards are looked into instead", place)
        return Listing()


def own_listing(folder: Path) -> Listing:
    """The listing of a folder that is to be written anew; DataError where it is somebody else's."""
    listing = read_listing(str(folder), {})
    if listing == Listing() and (folder / NAME).exists():
        raise DataError(f"{folder / NAME} is no index of stoplab's, and is kept: move it away")
    return listing


def read_rows(folder: str, options: Options) -> pa.Table | None:
    """The `index.parquet` of a folder, if there is one of ours."""
    place = f"{folder}/{ROWS}" if folder else ROWS
    try:
        data = Remote(place, options).read() if "://" in place else Path(place).read_bytes()
    except (FileNotFoundError, DataMissing):
        return None
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException:
        table = None
    if table is None or table.schema != COLUMNS:
        log.warning("%s is no index of stoplab's; the shards are looked into instead", place)
        return None
    return table


def rows_by_shard(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each shard; they lie side by side."""
    runs = pc.run_end_encode(table["shard"].combine_chunks())
    starts = [0, *runs.run_ends.to_pylist()]
    names = runs.values.to_pylist()
    return {
        name: table.slice(a, b - a) for name, (a, b) in zip(names, pairwise(starts), strict=True)
    }


def add_to_listing(
    folder: Path,
    made: Sequence[tuple[ListedShard, ShardIndex]],
    name: str | None = None,
    told: ListedSet | None = None,
) -> Listing:
    """Note shards of a folder, in place of those of the same names (and of the same set)."""
    with locked(folder / f".{NAME}", keep=False):
        before = own_listing(folder)
        fresh = {shard.name: shard for shard, _ in made}
        gone = {s.name for s in before.shards if not (folder / s.name).is_file()}
        kept = {s.name: s for s in before.shards if s.name not in gone}
        shards = sorted((kept | fresh).values(), key=lambda shard: shard.name)
        sets = dict(before.sets) | ({name: told} if name and told else {})
        after = Listing(sets=sets, shards=tuple(shards))
        _write_rows(folder / ROWS, after, {shard.name: index for shard, index in made})
        # Last: who finds the listing finds all that it names.
        write_atomic(folder / NAME, json.dumps(after.model_dump(mode="json"), indent=1) + "\n")
    return after


def _write_rows(path: Path, listing: Listing, indexes: Mapping[str, ShardIndex]) -> None:
    """A row group a shard, in the order of the listing."""
    found = read_rows(str(path.parent), {})
    old = {} if found is None else rows_by_shard(found)
    with replacing(path) as file, pq.ParquetWriter(file, COLUMNS) as writer:
        for shard in listing.shards:
            if shard.name in indexes:
                table = rows(shard.name, indexes[shard.name])
            else:
                table = old.get(shard.name, COLUMNS.empty_table())
            writer.write_table(table)


def rows(name: str, index: ShardIndex) -> pa.Table:
    """A shard's samples as rows of `COLUMNS`."""
    masked = index.mask_sizes < 0
    columns = [
        pa.array([name] * len(index.keys)),
        pa.array(index.keys),
        pa.array(index.labels, mask=index.labels < 0),
        pa.array(index.offsets),
        pa.array(index.sizes),
        pa.array(index.mask_offsets, mask=masked),
        pa.array(index.mask_sizes, mask=masked),
    ]
    return pa.Table.from_arrays(columns, schema=COLUMNS)
