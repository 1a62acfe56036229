"""From what a spec calls its data to its shards.

A spec gives a path or URL, with `{000..009}` or `*`, a folder, a list of them, or the name of an
embedded set.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.remote import Options, Remote
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs.places import is_inside, why_refused
from stoplab_trainers.data.cache import note_use
from stoplab_trainers.data.copies import Shard, shard_of
from stoplab_trainers.data.embedded import embedded_shards, is_embedded
from stoplab_trainers.data.listing import listed, read_listing

ENDINGS = (".tar", ".tar.gz", ".tgz")
FILE = "file://"
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
MOST_SHARDS = 1_000_000  # that one name stands for


def shards_of(urls: str | Sequence[str], cache: Path, storage: str | None = None) -> list[Shard]:
    """All shards that ``urls`` name, in order, with what the `index.json` beside them says.

    DataError names what is not allowed or cannot be read, DataMissing what is not there.
    ``storage`` is a reference to a secret with options for remote shards; it is read here alone.
    """
    settings = Settings()
    options = Secrets(settings).options(storage) if storage else {}
    names = shard_names(urls, cache, options, settings)
    known = listed(names, options)
    return [shard_of(n, cache, known.get(n), settings.cache_bytes, options) for n in names]


def shard_names(
    urls: str | Sequence[str], cache: Path, options: Options, settings: Settings
) -> list[str]:
    """The paths and URLs of single files; DataError as `shards_of`."""
    given = [urls] if isinstance(urls, str) else list(urls)
    for url in given:
        if why := why_refused(url, None, settings.data_schemes):
            raise DataError(why)
    names = [name for url in given for name in _expand(url, cache, options)]
    if not names:
        raise DataError(f"no shards: {urls!r} names none")
    most_common, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"the shard {most_common} is named {times} times")
    local = [name for name in names if "://" not in name]
    missing = [name for name in local if not Path(name).is_file()]
    if missing:
        raise DataMissing(
            f"{len(missing)} of {len(names)} shards do not exist, the first: {missing[0]}"
        )
    for name in local:
        # Followed here and not only at the submit: links may have changed since.
        if not is_inside(Path(name), _roots(settings, cache)):
            raise DataError(f"{name} lies outside of what STOPLAB_DATA_ROOTS allows")
        if Path(name).is_relative_to(cache):
            note_use(Path(name))
    return names


def local_copy(place: str, cache: Path, storage: str | None = None) -> Path:
    """A file or folder of this machine; a URL's file as its copy in the cache.

    Raises DataError for what is not allowed, DataMissing for what is not there. ``storage``: as in
    `shards_of`.
    """
    settings = Settings()
    options = Secrets(settings).options(storage) if storage else {}
    if why := why_refused(place, None, settings.data_schemes):
        raise DataError(why)
    place = place.removeprefix(FILE)
    if "://" in place:
        return shard_of(place, cache, None, settings.cache_bytes, options).path()
    path = Path(place).expanduser()
    if not is_inside(path, _roots(settings, cache)):
        raise DataError(f"{place} lies outside of what STOPLAB_DATA_ROOTS allows")
    if not path.exists():
        raise DataMissing(f"{place} does not exist")
    return path


def _roots(settings: Settings, cache: Path) -> list[Path] | None:
    """Below which local files must lie; what was made lies in the cache."""
    return None if settings.data_roots is None else [*settings.data_roots, cache]


def _expand(url: str, cache: Path, options: Options) -> Iterator[str]:
    if is_embedded(url):
        yield from (str(path) for path in embedded_shards(url, cache))
        return
    for name in spelled_out(url):
        yield from _listed(name.removeprefix(FILE), options)


def _listed(name: str, options: Options) -> list[str]:
    """A name's files: what a pattern matches, what a folder holds, or the name itself."""
    if "://" in name:
        return _listed_remote(name, options)
    path = Path(name).expanduser()
    if has_magic(name) and not path.exists():
        folder = path.parent
        # A folder that is there is meant as it is called, though it has brackets.
        found = sorted(
            (str(folder / file) for file in glob(path.name, root_dir=folder))
            if folder.is_dir()
            else glob(str(path))
        )
    elif path.is_dir():
        found = [str(file) for file in shards_in(path)]
    else:
        return [str(path)]
    if not found:
        raise DataMissing(f"{name!r} matches no shard")
    return found


def shards_in(folder: Path) -> list[Path]:
    """The shards that lie in a folder, sorted; hidden files are none."""
    files = (file for file in folder.iterdir() if file.name.endswith(ENDINGS))
    return sorted(file for file in files if not file.name.startswith("."))


def spelled_out(url: str) -> list[str]:
    """The names that a name's braces stand for; DataError where they are too many."""
    try:
        # Before they are: a range is written out as a whole.
        longest = max((abs(int(b) - int(a)) for a, b in RANGE.findall(url)), default=0)
        names = list(islice(braceexpand(url), MOST_SHARDS + 1)) if longest < MOST_SHARDS else None
    except ValueError as error:
        raise DataError(f"{url!r}: {error}") from error
    if names is None or len(names) > MOST_SHARDS:
        raise DataError(f"{url!r} stands for more than {MOST_SHARDS} shards")
    return names


def check_one_set(urls: str | Sequence[str]) -> None:
    """DataError where a folder that is to be one set holds several, as its index tells."""
    for url in [urls] if isinstance(urls, str) else urls:
        folder = Path(url.removeprefix(FILE)).expanduser()
        if is_embedded(url) or not os.path.isdir(folder):  # False of what can be no path, too
            continue
        names = {file.name.rpartition("-")[0] for file in shards_in(folder)}
        if len(sets := sorted(names & read_listing(str(folder), {}).sets.keys())) > 1:
            raise DataError(
                f"{url} holds the sets {' and '.join(sets)}: name one of them, as "
                f"{folder / sets[0]}-*.tar, or all, as {folder / '*.tar'}"
            )


def _listed_remote(name: str, options: Options) -> list[str]:
    # What follows the `?` of HTTP is no pattern.
    if not has_magic(name.partition("?")[0] if name.startswith("http") else name):
        return [name]
    found = Remote(name, options).matches()
    if not found:
        raise DataMissing(f"{name!r} matches no shard")
    return found
