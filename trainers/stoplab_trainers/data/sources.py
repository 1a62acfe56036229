"""What shards are built of: samples by number, here those that lie as image files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_platform.specs.base import canonical_digest
from stoplab_trainers.data.index import IMAGES, MOST_LABEL, is_text

Sample = tuple[str, dict[str, bytes]]
"""A key, and the members by extension."""
OF_THE_DISK = "lost+found"  # root's alone, at the top of many disks
LABEL_COLUMNS = ("label", "labels", "cls", "class")


class Source(ABC):
    """Samples by number. Reading is safe from many threads."""

    classes: Sequence[str] | None = None
    """Names of the classes, if it knows some."""
    in_any_order: bool
    """Whether samples can be read in an order other than their own."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples."""

    @abstractmethod
    def samples(self, ids: NDArray[np.int64]) -> Iterator[Sample]:
        """These samples; DataError names what cannot be read."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Changes whenever the source does, as far as names, sizes and times tell."""


class Files(Source):
    """Images as files, each with a key and perhaps a class."""

    in_any_order = True

    def __init__(
        self,
        paths: Sequence[Path],
        keys: Sequence[str],
        labels: Sequence[int] | None,
        classes: Sequence[str] | None,
    ) -> None:
        self.classes = classes
        self._paths, self._keys, self._labels = paths, keys, labels
        for path, key in zip(paths, keys, strict=True):
            if why := why_no_key(key):
                raise DataError(f"{str(path)!r} would get the key {key!r}, {why}: rename it")
        (key, times), *_ = Counter(keys).most_common(1)
        if times > 1:
            one, other = [path for path, k in zip(paths, keys, strict=True) if k == key][:2]
            raise DataError(f"{one} and {other} would both get the key {key!r}: rename one")

    def __len__(self) -> int:
        return len(self._paths)

    def samples(self, ids: NDArray[np.int64]) -> Iterator[Sample]:
        """The files' bytes as they are."""
        for i in ids.tolist():
            try:
                data = self._paths[i].read_bytes()
            except OSError as error:
                raise DataError(f"{self._paths[i]} cannot be read: {error.strerror}") from error
            label = {} if self._labels is None else {"cls": str(self._labels[i]).encode()}
            yield self._keys[i], {**label, extension_of(self._paths[i]): data}

    @cached_property
    def digest(self) -> str:
        """Of names, classes, sizes and times of change."""
        stamps = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            stamps.append([stat.st_size, stat.st_mtime_ns])
        return canonical_digest([list(self._keys), self._labels, self.classes, stamps])


def files_below(root: Path) -> Files:
    """A folder's images; where all lie in sub-folders, the first one's name is the class.

    DataError where it holds none, or a part of it may not be read.
    """
    paths = sorted(_images(root))
    if not paths:
        raise DataError(f"{root} holds no image ({', '.join(sorted(IMAGES))})")
    parts = [path.relative_to(root).parts for path in paths]
    keys = [plain_key(path.relative_to(root).with_suffix("").as_posix()) for path in paths]
    if any(len(one) == 1 for one in parts):
        return Files(paths, keys, None, None)
    classes = sorted({one[0] for one in parts})
    number = {name: i for i, name in enumerate(classes)}
    return Files(paths, keys, [number[one[0]] for one in parts], classes)


def _images(root: Path) -> Iterator[Path]:
    """Links are followed, for folders of classes often are some; no folder is entered twice."""

    def refuse(error: OSError) -> None:  # a class would be missing, and nobody told
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Sorted: of two links to one folder the first one counts, on every file system.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != OF_THE_DISK)
        for name in names:
            if not name.startswith(".") and extension_of(Path(name)) in IMAGES:
                yield Path(folder, name)


def files_of_manifest(path: Path, table: pa.Table, columns: Mapping[str, str]) -> Files:
    """The images that a table names by their paths, seen from the file at ``path``."""
    if odd := [name for name in table.column_names if name != name.strip()]:
        raise DataError(f"{path}: columns {odd} have a space at an end: write the header without")
    named = column(table.schema, columns, "image", ("path",))
    if named is None:
        raise DataError(f"{path} has no column 'path'; it has {table.column_names}")
    if not len(table):
        raise DataError(f"{path} holds no rows")
    words = [str(word) for word in table[named].to_pylist()]
    paths = [path.parent / word for word in words]
    for word in words:
        if extension_of(Path(word)) not in IMAGES:
            raise DataError(f"{path}: {word!r} is no image ({', '.join(sorted(IMAGES))})")
    key = column(table.schema, columns, "key", ("key",))
    stems = [Path(word).with_suffix("").as_posix() for word in words]
    keys = ["" if n is None else str(n) for n in table[key].to_pylist()] if key else stems
    label = column(table.schema, columns, "label", LABEL_COLUMNS)
    labels, classes = _numbered(path, label, table[label]) if label else (None, None)
    return Files(paths, [plain_key(one) for one in keys], labels, classes)


def _numbered(path: Path, name: str, labels: pa.ChunkedArray) -> tuple[list[int], list[str] | None]:
    """Class indices, and the sorted names where the labels are names."""
    words = labels.to_pylist()
    for row, word in enumerate(words):
        if word in (None, ""):
            raise DataError(f"{path}: row {row} has no label; give all or none")
    names = None
    if not pa.types.is_integer(labels.type):
        numbers, names = class_numbers(f"{path}: the column {name!r}", labels.type, words)
        words = [numbers[word] for word in words]
    for row, word in enumerate(words):
        if not 0 <= word <= MOST_LABEL:
            raise DataError(
                f"{path}: row {row} has the label {word}; a class index is 0 to {MOST_LABEL}"
            )
    return words, names


def class_numbers(
    what: str, kind: pa.DataType, labels: Iterable[Any]
) -> tuple[dict[Any, int], list[str] | None]:
    """Index by label; and the names in their order, where the labels are names.

    Fractions that are whole are indices: so pandas writes those of a column in which some are
    missing. DataError, which begins with ``what``, where labels are neither.
    """
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise DataError(f"{what} holds {kind}, no class indices or names")
    if pa.types.is_floating(kind):
        found = set(labels)
        if odd := [label for label in found if not float(label).is_integer()]:
            raise DataError(f"{what}: the label {odd[0]} is no whole number, as an index is")
        return {label: int(label) for label in found}, None
    words = {label: str(label) for label in labels}
    names = sorted(set(words.values()))
    number = {name: i for i, name in enumerate(names)}
    return {label: number[word] for label, word in words.items()}, names


def column(
    schema: pa.Schema, columns: Mapping[str, str], what: str, usual: Sequence[str]
) -> str | None:
    """The name of a column: as asked for, or a usual one that is there."""
    if what in columns and columns[what] not in schema.names:
        raise DataError(f"there is no column {columns[what]!r}; there are {schema.names}")
    found = columns.get(what) or next((name for name in usual if name in schema.names), None)
    if found and (times := schema.names.count(found)) > 1:
        raise DataError(f"{times} columns are called {found!r}: rename those that are not meant")
    return found


def holds_files(kind: pa.DataType) -> bool:
    """Whether a column's rows are files' bytes, or `{bytes, path}`."""
    is_some = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return pa.types.is_struct(kind) or any(one(kind) for one in is_some)


def extension_of(path: Path) -> str:
    """The last one, in small letters, without its dot."""
    return path.suffix.lower().removeprefix(".")


def why_no_key(key: str) -> str | None:
    """Why a shard could not hold a sample of this key, or None."""
    name = key.rpartition("/")[2]
    if not name or (name.startswith("__") and name.endswith("__")):
        return "which readers of WebDataset pass over"
    if not is_text(key):
        return "which is no UTF-8 text"
    return None


def plain_key(text: str) -> str:
    """A key ends at the first dot of its last part, and leads nowhere."""
    folder, _, name = text.rpartition("/")
    parts = [part for part in folder.split("/") if part not in ("", ".", "..")]
    return "/".join([*parts, name.replace(".", "_")])
