"""How many images a spec's data holds, as far as that can be told in a moment.

Embedded sets are known. Of local shards the headers of the first and the last are read and the
others are taken to be like the first. What lies elsewhere is not asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

from stoplab_platform.specs.data import EMBEDDED_IMAGES, Urls

ENDINGS = (".tar", ".tar.gz", ".tgz")
MOST_MEMBERS = 200_000  # of a shard, that are looked at
MOST_PACKED = 64 * 2**20  # bytes of a packed shard, that are unpacked for it
MOST_SHARDS = 100_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Count:
    """A number of images, and how it is known."""

    images: int
    source: str


def count_images(urls: Urls) -> Count | None:
    """Images behind a spec's ``urls``; None where they cannot be counted from here."""
    if isinstance(urls, str) and urls in EMBEDDED_IMAGES:
        return Count(EMBEDDED_IMAGES[urls], f"the embedded set {urls!r}")
    shards = _shards([urls] if isinstance(urls, str) else list(urls))
    if not shards:
        return None
    ends = [shards[0], shards[-1]] if len(shards) > 1 else shards
    counts = [_samples(path) for path in ends]
    if None in counts:
        return None
    first, last = counts[0] or 0, counts[-1] or 0
    if len(shards) == 1:
        return Count(first, f"counted in {shards[0].name}")
    total = first * (len(shards) - 1) + last
    return Count(total, f"{len(shards)} shards like {shards[0].name} and {shards[-1].name}")


def _shards(urls: list[str]) -> list[Path]:
    """The shards' paths in order; none where one is elsewhere or missing, or there are too many."""
    if any("://" in url or url.startswith("pipe:") for url in urls):
        return []
    found: list[Path] = []
    try:
        for name in (name for url in urls for name in _numbered(url)):
            fresh = _listed(name)
            found += fresh
            if len(found) > MOST_SHARDS or not all(path.is_file() for path in fresh):
                return []
    except (OSError, ValueError, RuntimeError):  # no path can be so
        return []
    return found


def _numbered(url: str) -> Iterator[str]:
    """`a-{000..009}.tar`, written out."""
    found = RANGE.search(url)
    if found is None:
        yield url
        return
    low, high = found.groups()
    for number in range(int(low), int(high) + 1):
        name = f"{number:0{len(low)}d}"
        yield from _numbered(url[: found.start()] + name + url[found.end() :])


def _listed(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS))
    if has_magic(path.name) and not path.exists():
        # A pattern of folders may stand for a whole disk: `path` itself is no shard.
        folders = has_magic(str(path.parent))
        return [path] if folders else [Path(match) for match in sorted(glob(str(path)))]
    return [path]


def _samples(path: Path) -> int | None:
    """Samples of one shard: runs of members with one key; None where it cannot be read quickly."""
    stamp = path.stat()
    if path.suffix != ".tar" and stamp.st_size > MOST_PACKED:
        return None
    return _counted(path, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=256)
def _counted(path: Path, size: int, changed_ns: int) -> int | None:
    try:
        with tarfile.open(path) as shard:
            names = [member.name for member in islice(shard, MOST_MEMBERS) if member.isfile()]
    except (tarfile.TarError, OSError, EOFError):
        return None
    keys = {_key(name) for name in names}
    return len(keys - {None})


def _key(name: str) -> str | None:
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return folder + slash + stem if stem and dot and not stem.startswith("__") else None
