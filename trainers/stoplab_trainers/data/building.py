"""Image folders and tables as WebDataset shards, with the index beside them.

A shard is written whole by one thread, and what it holds follows from the source, the seed and the
size alone: the bytes are the same however many threads there are, and however often the build was
interrupted. What is done is noted in a folder beside the shards until all is.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_platform.files import read_json, write_json
from stoplab_platform.randomness import Stream, generator
from stoplab_platform.specs.base import canonical_digest
from stoplab_trainers.data.cache import locked
from stoplab_trainers.data.index import ShardIndex, read_index
from stoplab_trainers.data.listing import (
    ListedSet,
    ListedShard,
    Listing,
    add_to_listing,
    own_listing,
)
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.data.sources import Source

VERSION = 1  # raise it when the same source gives other bytes
Made = tuple[ListedShard, ShardIndex]


@dataclass(frozen=True)
class Recipe:
    """How a set of shards is made."""

    name: str
    """Of the set: its shards are NAME-000000.tar and so on."""
    shard_size: int
    """Most samples of a shard."""
    seed: int | None
    """Samples are shuffled by it; None: in the order of the source."""

    def digest(self, source: Source) -> str:
        """Changes whenever a byte of the shards would."""
        parts = [VERSION, source.digest, self.name, self.shard_size, self.seed]
        return canonical_digest(parts)

    def shards(self, source: Source) -> dict[str, NDArray[np.int64]]:
        """The samples of each shard, by its file name; nearly equally many."""
        order = np.arange(len(source))
        if self.seed is not None:
            order = generator(self.seed, Stream.ORDER).permutation(order)
        parts = np.array_split(order, math.ceil(len(order) / self.shard_size))
        return {f"{self.name}-{number:06d}.tar": part for number, part in enumerate(parts)}


def build(
    source: Source,
    out: Path,
    recipe: Recipe,
    *,
    threads: int | None = None,
    force: bool = False,
    told: Callable[[ListedShard], None] = lambda shard: None,
) -> Listing:
    """Build what is not there yet; each shard that is done is ``told``.

    DataError where the source cannot be read, or other shards of that name are there.
    """
    if recipe.seed is not None and not source.in_any_order:
        raise DataError("the rows of a table are taken in their own order: give no shuffle seed")
    if not re.fullmatch(r"[\w.@-]{1,100}", recipe.name):
        raise DataError(f"name: {recipe.name!r}: letters, digits, `.`, `_`, `-` and `@` only")
    digest = recipe.digest(source)
    with locked(out / f".{recipe.name}", keep=False):
        before = own_listing(out)
        if not force and _is_built(out, before, recipe.name, digest):
            return before
        notes = _begin(out, before, recipe.name, digest, force=force)
        made = list(_made(source, out, recipe, notes, threads or os.cpu_count() or 1, told))
        kept = ListedSet(
            samples=sum(shard.samples for shard, _ in made),
            bytes=sum(shard.bytes for shard, _ in made),
            classes=None if source.classes is None else tuple(source.classes),
            recipe=digest,
        )
        listing = add_to_listing(out, made, recipe.name, kept)
        shutil.rmtree(notes)
        return listing


def described(path: Path, plain: Path | None = None) -> Made:
    """A shard as a listing knows it, read from the file; ``plain``: its unpacked tar."""
    index = read_index(plain or path, str(path))
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    shard = ListedShard(
        name=path.name,
        samples=len(index.keys),
        bytes=path.stat().st_size,
        sha256=checksum,
        digest=index.digest,
    )
    return shard, index


def _is_built(out: Path, listing: Listing, name: str, digest: str) -> bool:
    if not _has_recipe(listing, name, digest):
        return False
    own = [shard for shard in listing.shards if _is_of(shard.name, name)]
    return sum(shard.samples for shard in own) == listing.sets[name].samples and all(
        (out / shard.name).is_file() and (out / shard.name).stat().st_size == shard.bytes
        for shard in own
    )


def _has_recipe(listing: Listing, name: str, digest: str) -> bool:
    known = listing.sets.get(name)
    return known is not None and known.recipe == digest


def _begin(out: Path, before: Listing, name: str, digest: str, *, force: bool) -> Path:
    """The folder of notes; DataError where shards of another build would be mixed up with it."""
    notes = out / f".build-{name}"
    for draft in out.glob(f".{name}-*.tar.*"):  # of a build that was killed
        if _is_of(draft.name[1:].rpartition(".")[0], name):
            draft.unlink()
    begun = read_json(notes / "recipe.json")
    if begun == {"recipe": digest}:
        return notes
    if not force and _has_recipe(before, name, digest):  # it was built, and a shard is gone
        for shard in before.shards:
            if _is_of(shard.name, name):
                write_json(notes / f"{shard.name}.json", shard.model_dump(mode="json"))
        write_json(notes / "recipe.json", {"recipe": digest})
        return notes
    there = [path for path in sorted(out.glob(f"{name}-*.tar")) if _is_of(path.name, name)]
    if (there or begun) and not force:
        what = "shards of another build, or of a part of one," if there else "another build's notes"
        raise DataError(f"{out} holds {what} of the name {name!r}; --force replaces them")
    for path in there:
        path.unlink()
    shutil.rmtree(notes, ignore_errors=True)
    write_json(notes / "recipe.json", {"recipe": digest})
    return notes


def _made(
    source: Source,
    out: Path,
    recipe: Recipe,
    notes: Path,
    threads: int,
    told: Callable[[ListedShard], None],
) -> Iterator[Made]:
    """All shards in order, those of an interrupted build too."""

    def make(job: tuple[str, NDArray[np.int64]]) -> Made:
        file, ids = job
        note = notes / f"{file}.json"
        known = read_json(note)
        if known and (out / file).is_file() and (out / file).stat().st_size == known["bytes"]:
            made = ListedShard.model_validate(known), read_index(out / file)
        else:
            written = write_shard(out / file, source.samples(ids))
            made = described(out / file)
            if made[0].samples != written:
                raise DataError(
                    f"{out / file}: {written} samples went in, {made[0].samples} came out"
                )
            write_json(note, made[0].model_dump(mode="json"))
        told(made[0])
        return made

    pool = ThreadPoolExecutor(threads, thread_name_prefix="stoplab-build")
    try:
        yield from pool.map(make, recipe.shards(source).items())
    finally:
        pool.shutdown(cancel_futures=True)


def _is_of(file: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-\d{{6,}}\.tar", file) is not None
