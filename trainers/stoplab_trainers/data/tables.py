"""Samples from tables that hold the images' bytes: Parquet, and Arrow as `datasets` saves it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_platform.files import read_json
from stoplab_platform.specs.base import canonical_digest
from stoplab_trainers.data.index import IMAGES, MOST_LABEL
from stoplab_trainers.data.sources import (
    LABEL_COLUMNS,
    Sample,
    Source,
    class_numbers,
    column,
    extension_of,
    holds_files,
    plain_key,
    why_no_key,
)

AT_ONCE = 64  # rows
PAGE = 1 << 20  # bytes that are read of a column at a time
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
MAGIC = (
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"),
    (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"P6", "ppm"), (b"P5", "pgm"),
)  # fmt: skip


class Table(Source):
    """Rows that hold images' bytes, in Arrow or Parquet files."""

    in_any_order = False  # a row group is read whole

    def __init__(self, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        self._parts = [part for file in files for part in _parts(file)]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts])])
        if not len(self):
            raise DataError(f"{files[0]} holds no rows")
        schema = self._parts[0].schema
        self._image = column(schema, columns, "image", IMAGE_COLUMNS)
        if self._image is None:
            raise DataError(f"{files[0]}: which column holds the images? It has {schema.names}")
        self._label = column(schema, columns, "label", LABEL_COLUMNS)
        self._key = column(schema, columns, "key", ())
        self._check_columns(files[0])
        if self._key:
            self._check_keys(self._key)
        self.classes = _class_names(schema, files[0].parent, self._label)
        self._files = files
        self._numbers = self._class_numbers()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def samples(self, ids: NDArray[np.int64]) -> Iterator[Sample]:
        """Rows that follow one another."""
        wanted = [name for name in (self._image, self._label, self._key) if name]
        first, last = int(ids[0]), int(ids[-1])
        assert last - first + 1 == len(ids), "the order is the rows' own"
        for part, start in zip(self._parts, self._starts.tolist(), strict=False):
            if start <= last and start + len(part) > first:
                low = max(first, start)
                rows = part.rows(wanted, low - start, last + 1 - start)
                yield from (self._sample(low + i, row) for i, row in enumerate(rows))

    @cached_property
    def digest(self) -> str:
        """Of the files' names, sizes and times of change, and of what is read of them."""
        stats = [(file.name, file.stat()) for file in self._files]
        stamps = [[name, s.st_size, s.st_mtime_ns] for name, s in stats]
        return canonical_digest([stamps, self._image, self._label, self._key, self.classes])

    def _sample(self, number: int, row: Mapping[str, Any]) -> Sample:
        assert self._image is not None
        image: Any = row[self._image]
        path = None
        if isinstance(image, Mapping):
            path, image = image.get("path"), image.get("bytes")
        if image is None:
            raise DataError(f"row {number}: its image is not in the table ({path})")
        members = {_kind(image, path, number): image}
        label = row[self._label] if self._label else None
        if label is not None:
            label = self._numbers[label] if self._numbers else label
            if label > MOST_LABEL:
                raise DataError(
                    f"row {number} has the label {label}; a class index is 0 to {MOST_LABEL}"
                )
            members = {"cls": str(label).encode(), **members}
        return plain_key(str(row[self._key])) if self._key else f"{number:09d}", members

    def _check_columns(self, first: Path) -> None:
        """DataError where a part has not those of the first one, or no images' bytes."""
        for part in self._parts:
            for name in filter(None, (self._image, self._label, self._key)):
                if name not in part.schema.names:
                    raise DataError(f"{part.file} has no column {name!r}, and {first.name} has one")
            kind = part.schema.field(self._image).type
            if not holds_files(kind):
                raise DataError(
                    f"{part.file}: the column {self._image!r} holds {kind}, no images' bytes; "
                    "where it holds paths, give the file itself, and the column by --image"
                )

    def _check_keys(self, name: str) -> None:
        """DataError where two rows would get one key, or a row none."""
        words = (word for part in self._parts for word in part.column(name).to_pylist())
        rows: dict[str, int] = {}
        for row, word in enumerate(words):
            if word is None:
                raise DataError(f"row {row} has no key (column {name!r})")
            key = plain_key(str(word))
            if why := why_no_key(key):
                raise DataError(f"row {row} would get the key {key!r}, {why}")
            if (other := rows.setdefault(key, row)) != row:
                raise DataError(f"rows {other} and {row} would both get the key {key!r}")

    def _class_numbers(self) -> dict[Any, int] | None:
        """Index by label, where labels are not integers."""
        if self._label is None:
            return None
        kinds = [(part.file.name, part.schema.field(self._label).type) for part in self._parts]
        kinds = [(file, kind) for file, kind in kinds if not pa.types.is_null(kind)]
        unlike = {_is_number(kind): f"{kind} in {file}" for file, kind in reversed(kinds)}
        if len(unlike) > 1:
            held = " and ".join(unlike.values())
            raise DataError(f"the column {self._label!r} holds {held}: write them alike")
        others = [kind for _, kind in kinds if not pa.types.is_integer(kind)]
        if not others:
            return None
        columns = (part.column(self._label).unique() for part in self._parts)
        labels = (label for one in columns for label in one.drop_null().to_pylist())
        numbers, names = class_numbers(f"the column {self._label!r}", others[0], labels)
        self.classes = names or self.classes
        return numbers


def noted(file: Path) -> dict[str, Any]:
    """What a file of Hugging Face's says, if it is there; DataError where it is broken."""
    try:
        return read_json(file) or {}
    except ValueError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """DataError, which names the file, of what pyarrow says of a broken one."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


class _Part:
    """A row group of a Parquet file, or a file of Arrow's stream format (mapped, not read)."""

    def __init__(self, file: Path, group: int | None = None) -> None:
        self.file, self._group = file, group
        if group is None:
            self._table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
            self.schema, self._rows = self._table.schema, self._table.num_rows
        else:
            meta = pq.read_metadata(file)
            self.schema, self._rows = pq.read_schema(file), meta.row_group(group).num_rows

    def __len__(self) -> int:
        return int(self._rows)

    def column(self, name: str) -> pa.ChunkedArray:
        if self._group is None:
            return self._table[name]
        with readable(self.file):
            return pq.ParquetFile(self.file).read_row_group(self._group, columns=[name])[name]

    def rows(self, columns: Sequence[str], start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Those from ``start`` to before ``stop`` (or the end), few in memory at a time."""
        at = 0
        with readable(self.file):
            for batch in self._batches(list(columns)):
                if at + len(batch) > start:
                    skipped = max(0, start - at)
                    yield from batch.slice(skipped, max(0, stop - at - skipped)).to_pylist()
                at += len(batch)
                if at >= stop:
                    return

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self._group is None:
            yield from self._table.select(columns).to_batches(max_chunksize=AT_ONCE)
            return
        # A row group may be as large as its file: it comes page by page.
        with pq.ParquetFile(self.file, pre_buffer=False, buffer_size=PAGE) as file:
            yield from file.iter_batches(AT_ONCE, row_groups=[self._group], columns=columns)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _parts(file: Path) -> list[_Part]:
    with readable(file):
        if file.suffix == ".arrow":
            return [_Part(file)]
        return [_Part(file, group) for group in range(pq.read_metadata(file).num_row_groups)]


def _class_names(schema: pa.Schema, folder: Path, label: str | None) -> list[str] | None:
    """What Hugging Face's features say, in the schema or in `dataset_info.json`."""
    note = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(note).get("info", {}).get("features", {}) if note else {}
    if not features:
        features = noted(folder / "dataset_info.json").get("features") or {}
    feature = features.get(label)  # of lists of classes it is a list
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return [str(name) for name in names] if names else None


def _kind(image: bytes, path: str | None, number: int) -> str:
    extension = extension_of(Path(path)) if path else ""
    if extension in IMAGES:
        return extension
    found = next((kind for magic, kind in MAGIC if image.startswith(magic)), None)
    if found is None:
        raise DataError(f"row {number}: no image that is known (it begins with {image[:8]!r})")
    return found
