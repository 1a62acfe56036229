"""From what a spec calls its data to a list of shard files, on this machine.

A spec gives a path or URL, with `{000..009}` or `*`, a folder, a list of them, or the name of an
embedded set. Remote shards (fsspec) are copied into the cache, packed ones (`.tar.gz`) unpacked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs.places import is_inside, why_refused
from stoplab_trainers.data.cache import locked, replacing
from stoplab_trainers.data.embedded import embedded_shards, is_embedded

Options = dict[str, Any]
ENDINGS = (".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 20
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class LocalShard:
    """A plain tar on this machine, and the name under which the spec knows it."""

    name: str
    path: Path


def local_shards(
    urls: str | Sequence[str], cache: Path, storage: str | None = None
) -> list[LocalShard]:
    """All shards that ``urls`` name, in order.

    DataError names what is not allowed or cannot be read, DataMissing what is not there.
    ``storage`` is a reference to a secret with options for remote shards; it is read here alone.
    """
    settings = Settings()
    options = Secrets(settings).options(storage) if storage else {}
    listed = [urls] if isinstance(urls, str) else list(urls)
    for url in listed:
        if why := why_refused(url, None, settings.data_schemes):
            raise DataError(why)
    names = [name for url in listed for name in _expand(url, cache, options)]
    if not names:
        raise DataError(f"no shards: {urls!r} names none")
    most_common, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"the shard {most_common} is named {times} times")
    missing = [name for name in names if "://" not in name and not Path(name).is_file()]
    if missing:
        raise DataMissing(
            f"{len(missing)} of {len(names)} shards do not exist, the first: {missing[0]}"
        )
    paths = [_fetched(name, cache, options) for name in names]
    # What was fetched or made lies in the cache.
    roots = None if settings.data_roots is None else [*settings.data_roots, cache]
    for name, path in zip(names, paths, strict=True):
        # Followed here and not only at the submit: links may have changed since.
        if not is_inside(path, roots):
            raise DataError(f"{name} lies outside of what STOPLAB_DATA_ROOTS allows")
    plain = [_unpacked(path, cache) for path in paths]
    for path in {*paths, *plain}:
        if path.is_relative_to(cache):
            _note_use(path)
    return [LocalShard(name, path) for name, path in zip(names, plain, strict=True)]


def local_copy(place: str, cache: Path, storage: str | None = None) -> Path:
    """A file or folder of this machine; a URL's file as its copy in the cache.

    Raises DataError for what is not allowed, DataMissing for what is not there. ``storage``: as in
    `local_shards`.
    """
    settings = Settings()
    options = Secrets(settings).options(storage) if storage else {}
    if why := why_refused(place, None, settings.data_schemes):
        raise DataError(why)
    path = _fetched(place, cache, options).expanduser()
    roots = None if settings.data_roots is None else [*settings.data_roots, cache]
    if not is_inside(path, roots):
        raise DataError(f"{place} lies outside of what STOPLAB_DATA_ROOTS allows")
    if not path.exists():
        raise DataMissing(f"{place} does not exist")
    if path.is_relative_to(cache):
        _note_use(path)
    return path


def _note_use(path: Path) -> None:
    """For who keeps the cache small: many file systems do not note it by themselves."""
    with suppress(OSError):  # somebody else's file, or one that may only be read
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _expand(url: str, cache: Path, options: Options) -> Iterator[str]:
    if is_embedded(url):
        yield from (str(path) for path in embedded_shards(url, cache))
        return
    try:
        names = list(braceexpand(url))
    except ValueError as error:
        raise DataError(f"{url!r}: {error}") from error
    for name in names:
        yield from _listed(name, options)


def _listed(name: str, options: Options) -> list[str]:
    """A name's files: what a pattern matches, what a folder holds, or the name itself."""
    if "://" in name:
        return _listed_remote(name, options)
    path = Path(name).expanduser()
    if has_magic(name) and not path.exists():
        found = sorted(glob(str(path)))
    elif path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if file.name.endswith(ENDINGS))
    else:
        return [str(path)]
    if not found:
        raise DataMissing(f"{name!r} matches no shard")
    return found


def _listed_remote(name: str, options: Options) -> list[str]:
    if not has_magic(name):
        return [name]
    files, pattern = _file_system(name, options)
    found = sorted(files.unstrip_protocol(path) for path in files.glob(pattern))
    if not found:
        raise DataMissing(f"{name!r} matches no shard")
    return found


def _fetched(name: str, cache: Path, options: Options) -> Path:
    """The shard as a local file; a remote one is copied once for each of its versions."""
    if "://" not in name:
        return Path(name)
    files, path = _file_system(name, options)
    if isinstance(files, LocalFileSystem):
        return Path(path)
    try:
        info = files.info(path)
    except FileNotFoundError as error:
        raise DataMissing(f"{name} does not exist") from error
    version = [str(info[stamp]) for stamp in STAMPS if info.get(stamp)]
    known = "\0".join([name, str(info["size"]), *version])
    version_id = hashlib.sha256(known.encode()).hexdigest()
    copy = cache / "remote" / version_id / name.rpartition("/")[2]
    with locked(copy):
        if not copy.exists():
            with files.open(path, "rb") as source, replacing(copy) as target:
                shutil.copyfileobj(source, target, CHUNK)
    return copy


def _file_system(name: str, options: Options) -> tuple[AbstractFileSystem, str]:
    try:
        files, path = fsspec.core.url_to_fs(name, **options)
    except ImportError as error:  # the scheme's own package is not installed
        raise DataError(f"{name}: {error}") from error
    return files, path


def _unpacked(path: Path, cache: Path) -> Path:
    """A packed shard as a plain tar in the cache, named by the packed file's checksum."""
    if path.name.endswith(".tar"):
        return path
    stamp = path.stat()
    known = f"{path.resolve()}\0{stamp.st_size}\0{stamp.st_mtime_ns}"
    note = cache / "unpacked" / f"{hashlib.sha256(known.encode()).hexdigest()}.sha256"
    if note.exists():
        plain = cache / "unpacked" / f"{note.read_text()}.tar"
        if plain.exists():
            return plain
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    plain = cache / "unpacked" / f"{checksum}.tar"
    with locked(plain):
        if not plain.exists():
            _unpack(path, plain)
    with replacing(note) as file:
        file.write(checksum.encode())
    return plain


def _unpack(packed: Path, plain: Path) -> None:
    try:
        with gzip.open(packed, "rb") as source, replacing(plain) as target:
            shutil.copyfileobj(source, target, CHUNK)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{packed} cannot be unpacked: {error}") from error
