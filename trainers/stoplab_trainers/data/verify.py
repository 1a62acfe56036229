"""Look whether shards are whole, as their index says, and fit to be trained on.

    python -m stoplab_trainers.data.verify PLACE... [--images] [--storage secret://NAME] [--json]

Remote shards are fetched into the cache. Exit code 1 where something is wrong with a shard.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import Any

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.exits import Exit
from stoplab_platform.settings import Settings
from stoplab_trainers.data.copies import Fetched, Shard
from stoplab_trainers.data.decode import BadImage, decode
from stoplab_trainers.data.index import UNLABELLED, ShardIndex, read_index
from stoplab_trainers.data.listing import read_listing
from stoplab_trainers.data.tool import bar, run
from stoplab_trainers.data.urls import FILE, shards_of, spelled_out

Problem = dict[str, str]


def main(arguments: list[str] | None = None) -> Exit:
    """Parse, look, list what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m stoplab_trainers.data.verify")
    parser.add_argument("places", nargs="+")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--storage")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return run(options.json, lambda: _verify(options), _spelled)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    shards = shards_of(options.places, Settings().folders.cache, options.storage)
    problems = [problem for place in options.places for problem in _not_there(place)]
    seen: dict[str, str] = {}
    samples = unlabelled = 0
    with (
        bar("shards", len(shards), quiet=options.json) as advance,
        ThreadPoolExecutor(options.threads) as pool,
    ):
        looked = pool.map(lambda shard: _look(shard, images=options.images), shards)
        for shard, (index, found) in zip(shards, looked, strict=True):
            problems += found
            if index is not None:
                samples += len(index.keys)
                unlabelled += int((index.labels == UNLABELLED).sum())
                problems += _known_keys(shard.name, index, seen)
            advance(1)
    return {
        "shards": len(shards),
        "samples": samples,
        "unlabelled": unlabelled,
        "without_index": sum(shard.listed is None for shard in shards),
        "problems": problems,
    }


def _not_there(place: str) -> Iterator[Problem]:
    """What a local folder's listing names, as far as a pattern means it, and the folder has not."""
    for name in spelled_out(place.removeprefix(FILE)):
        path = Path(name).expanduser()
        folder, pattern = (path, "*") if path.is_dir() else (path.parent, path.name)
        for shard in read_listing(str(folder), {}).shards if has_magic(pattern) else ():
            if fnmatchcase(shard.name, pattern) and not (folder / shard.name).is_file():
                yield _problem(str(folder / shard.name), "its index.json lists it, and it is gone")


def _look(shard: Shard, *, images: bool) -> tuple[ShardIndex | None, list[Problem]]:
    """What a shard holds, if that can be told, and what is wrong with it."""
    problems = []
    try:
        shard.check()
        path = shard.path()
        if not isinstance(shard, Fetched):
            problems += [_problem(shard.name, text) for text in _wrong_checksum(shard)]
        index = read_index(path, shard.name)  # as it is now, not as the cache remembers it
    except DataMissing as error:
        return None, [_problem(shard.name, str(error))]
    except (DataError, OSError) as error:
        return None, [*problems, _problem(shard.name, str(error))]
    if shard.listed and shard.listed.digest != index.digest and not problems:
        problems.append(_problem(shard.name, "it does not hold what its index.json says"))
    problems += [_problem(shard.name, text) for text in _passed_over(path)]
    if images:
        problems += _bad_images(shard.name, path, index)
    return index, problems


def _passed_over(path: Path) -> Iterator[str]:
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                yield f"{member.name!r} is a link or device, which nobody reads"


def _wrong_checksum(shard: Shard) -> Iterator[str]:
    if shard.listed:
        with Path(shard.name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.listed.sha256:
            yield f"its sha256 is {found}, and its index.json says {shard.listed.sha256}"


def _known_keys(name: str, index: ShardIndex, seen: dict[str, str]) -> Iterator[Problem]:
    """Keys that other shards have too, or that would lead out of a folder."""
    for key in index.keys:
        if (other := seen.setdefault(key, name)) != name:
            yield _problem(name, f"the sample {key!r} is in {other} too")
        if key.startswith("/") or ".." in key.split("/"):
            yield _problem(name, f"the name {key!r} leads out of the folder it is unpacked in")


def _bad_images(name: str, path: Path, index: ShardIndex) -> Iterator[Problem]:
    with path.open("rb") as file:
        for key, offset, size in zip(index.keys, index.offsets, index.sizes, strict=True):
            file.seek(int(offset))
            try:
                decode(file.read(int(size)))
            except BadImage as error:
                yield _problem(name, f"sample {key!r}: {error}")


def _problem(shard: str, text: str) -> Problem:
    return {"shard": shard, "problem": text}


def _spelled(told: dict[str, Any]) -> str:
    lines = [f"{one['shard']}: {one['problem']}" for one in told["problems"]]
    end = "no problem" if not lines else f"{len(lines)} problem(s)"
    counts = "{shards} shards, {samples} samples, {unlabelled} of them without a label".format(
        **told
    )
    return "\n".join([*lines, f"{counts}, {told['without_index']} shards without an index: {end}"])


if __name__ == "__main__":
    sys.exit(main())
