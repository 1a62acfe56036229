"""Building: from every kind of source, the same bytes always, resumed, indexed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from stoplab_platform.errors import DataError
from stoplab_trainers.data import building
from stoplab_trainers.data.build import main as main_build
from stoplab_trainers.data.build import source_of
from stoplab_trainers.data.building import Recipe, build
from stoplab_trainers.data.index import UNLABELLED, read_index
from stoplab_trainers.data.listing import read_listing
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.data.sources import Sample
from stoplab_trainers.data.stats import main as main_stats
from stoplab_trainers.data.verify import main as main_verify
from support_shards import encoded, picture, shard, tar, three_shards

CLASSES = ("ant", "bee", "cat")
COUNT = 11
RECIPE = Recipe("train", 4, 0)


def images(root: Path) -> Path:
    """A folder a class, each picture in its class modulo 3."""
    for n in range(COUNT):
        path = root / CLASSES[n % 3] / f"im.{n:02d}.{'JPEG' if n % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(n), "jpeg" if n % 2 else "png"))
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / "ant" / ".hidden.png").write_bytes(b"")
    return root


def bytes_of(n: int) -> bytes:
    return encoded(picture(n), "jpeg" if n % 2 else "png")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def held(folder: Path, cache: Path) -> dict[bytes, int]:
    """Class by image."""
    shards = ShardSet.open(str(folder), cache)
    assert shards.labels is not None
    return {shards.read(n): int(shards.labels[n]) for n in range(len(shards))}


EXPECTED = {bytes_of(n): n % 3 for n in range(COUNT)}


def test_a_folder_of_classes(tmp_path: Path) -> None:
    source = source_of(images(tmp_path / "images"), {})
    listing = build(source, tmp_path / "out", RECIPE)
    assert listing.sets["train"].classes == CLASSES
    assert [shard.samples for shard in listing.shards] == [4, 4, 3]
    assert held(tmp_path / "out", tmp_path / "cache") == EXPECTED
    keys = ShardSet.open(str(tmp_path / "out"), tmp_path / "cache").keys
    assert sorted(keys)[0] == "ant/im_00"
    assert keys != sorted(keys), "shuffled"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "index.json", "index.parquet", *(f"train-{n:06d}.tar" for n in range(3)),
    ]  # fmt: skip


def table(kind: str, folder: Path) -> Path:
    """The same samples as another kind of source."""
    folder.mkdir(exist_ok=True)
    names = [f"../images/{CLASSES[n % 3]}/im.{n:02d}.{'JPEG' if n % 2 else 'png'}"
             for n in range(COUNT)]  # fmt: skip
    labels = [n % 3 for n in range(COUNT)]
    structs = [{"bytes": bytes_of(n), "path": None} for n in range(COUNT)]
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    if kind == "csv":
        words = pa.table({"path": names, "label": [CLASSES[n] for n in labels]})
        pa.csv.write_csv(words, folder / "list.csv")
        return folder / "list.csv"
    if kind == "paths":
        pq.write_table(pa.table({"path": names, "label": labels}), folder / "list.parquet")
        return folder / "list.parquet"
    rows = pa.table({"image": structs, "label": labels}).replace_schema_metadata(note)
    if kind == "parquet":
        pq.write_table(rows.slice(0, 6), folder / "a.parquet", row_group_size=4)
        pq.write_table(rows.slice(6), folder / "b.parquet", row_group_size=2)
    elif kind == "arrow":
        for number, part in enumerate((rows.slice(0, 5), rows.slice(5))):
            with pa.ipc.new_stream(folder / f"data-{number:05d}.arrow", rows.schema) as sink:
                sink.write_table(part)
    return folder


@pytest.mark.parametrize("kind", ["csv", "paths", "parquet", "arrow"])
def test_manifests_and_hugging_face(kind: str, tmp_path: Path) -> None:
    images(tmp_path / "images")
    place = table(kind, tmp_path / "table")
    args = [str(place), "--out", str(tmp_path / "out"), "--shard-size", "4", "--json"]
    assert main_build(args) == 0
    assert held(tmp_path / "out", tmp_path / "cache") == EXPECTED
    listing = read_listing(str(tmp_path / "out"), {})
    assert listing.sets["train"].classes == (None if kind == "paths" else CLASSES)


def test_a_table_of_one_row_group_is_read_piece_by_piece(tmp_path: Path) -> None:
    png = encoded(picture(0)).ljust(100_000, b"\0")
    rows = pa.table({"image": [png] * 400, "label": list(range(400))})
    pq.write_table(
        rows, tmp_path / "rows.parquet",
        use_dictionary=False, compression="none", write_batch_size=8,
    )  # fmt: skip
    source = source_of(tmp_path / "rows.parquet", {})
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool := pa.proxy_memory_pool(before))
    try:
        for first in (0, 130, 390):
            ids = np.arange(first, min(first + 130, 400))
            found = [members["cls"] for _, members in source.samples(ids)]
            assert found == [str(n).encode() for n in ids]
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < rows.nbytes / 2


def test_bytes_do_not_depend_on_threads_nor_on_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(images(tmp_path / "images"), {})
    build(source, tmp_path / "one", RECIPE, threads=1)
    build(source, tmp_path / "four", RECIPE, threads=4)
    assert tree(tmp_path / "one") == tree(tmp_path / "four")
    out, samples = tmp_path / "resumed", source.samples

    def breaking(ids: np.ndarray[Any, Any]) -> Iterator[Sample]:
        if 0 < (out / "train-000001.tar").exists():
            raise OSError("the disk went away")
        return samples(ids)

    with monkeypatch.context() as patch:
        patch.setattr(source, "samples", breaking)
        with pytest.raises(OSError, match="went away"):
            build(source, out, RECIPE, threads=1)
    assert not (out / "index.json").exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(done) == 2
    (out / ".train-000002.tar.0a1b2c3d").write_bytes(b"of a build that was killed")
    build(source, out, RECIPE, threads=1)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "not built again"
    assert tree(out) == tree(tmp_path / "one")


def test_what_is_built_is_not_built_again_nor_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = source_of(images(tmp_path / "images"), {}), tmp_path / "out"
    build(source, out, RECIPE)
    written = []
    write = building.write_shard
    monkeypatch.setattr(
        building, "write_shard", lambda path, s: written.append(path) or write(path, s)
    )
    build(source, out, RECIPE)
    assert written == []
    (lost := out / "train-000001.tar").unlink()
    assert build(source, out, RECIPE).sets["train"].samples == COUNT
    assert written == [lost]
    other = Recipe("train", 6, 0)
    with pytest.raises(DataError, match="of the name 'train'; --force replaces them"):
        build(source, out, other)
    listing = build(source, out, other, force=True)
    assert [shard.samples for shard in listing.shards] == [6, 5]
    assert len(list(out.glob("*.tar"))) == 2


def test_two_sets_share_a_folder_and_its_index(tmp_path: Path) -> None:
    source, out = source_of(images(tmp_path / "images"), {}), tmp_path / "out"
    build(source, out, Recipe("train", 6, 0))
    listing = build(source, out, Recipe("val", 6, 1))
    assert sorted(listing.sets) == ["train", "val"]
    assert [shard.name for shard in listing.shards] == [
        "train-000000.tar", "train-000001.tar", "val-000000.tar", "val-000001.tar",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"holds the sets train and val: name one.*/train-\*\.tar"):
        ShardSet.open(str(out), tmp_path / "cache")
    assert len(ShardSet.open(str(out / "train-*.tar"), tmp_path / "cache")) == COUNT
    assert main_verify([str(out), "--json"]) == 1, "their keys are the same"
    rows = pq.read_table(out / "index.parquet").to_pylist()
    assert len(rows) == 2 * COUNT
    for row in rows:
        with (out / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert EXPECTED[file.read(row["bytes"])] == row["label"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no image"),
        ({"a.jpg": b"x", "a.png": b"x"}, "would both get the key 'a'"),
        ({"dataset_dict.json": b"{}", "train/x.arrow": b""}, "holds the splits train"),
        ({"list.csv": b"path\nx.exe\n"}, "'x.exe' is no image"),
        ({"list.csv": b"file\nx.jpg\n"}, "no column 'path'"),
        ({"list.csv": b"path\ngone.jpg\n"}, "gone.jpg cannot be read"),
        ({"list.csv": b"path,label\n"}, "list.csv holds no rows"),
        ({"list.csv": b"path,label\na.jpg,\nb.jpg,1\n"}, "row 0 has no label"),
        ({"list.csv": b"path,label\na.jpg,ant\nb.jpg,\n"}, "row 1 has no label"),
        ({"list.csv": b"path,label\na.jpg,0.5\n"}, "the label 0.5 is no whole number"),
        ({"list.csv": b"path,label\na.jpg,\xe9\n"}, "'label' holds binary, no class indices or"),
        ({"list.csv": b"path,path\na.jpg,a.jpg\n"}, "2 columns are called 'path'"),
        ({"list.csv": b"path,label\na.jpg,4\nb.jpg,-1\n"}, "row 1 has the label -1"),
        ({"list.csv": b"path,label\na.jpg,1000000000\n"}, "index is 0 to 999999999"),
        ({"a/__x__.jpg": b"x"}, "the key 'a/__x__', which readers of WebDataset pass over"),
        ({"a\udcff.jpg": b"x"}, "which is no UTF-8 text"),
        ({"train-0.parquet": b"x", "test-0.parquet": b"x"}, "several splits (test, train)"),
        ({"list.txt": b""}, "give a folder, a .csv or a .parquet file"),
        ({"x.parquet": b"nothing"}, "cannot be read"),
    ],
)
def test_what_cannot_be_built_is_told(
    files: dict[str, bytes], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (only, *_) = [*files, ""]
    place = root / only if only.startswith("list") else root
    assert main_build([str(place), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "paths", "rows"])
def test_whole_numbers_are_indices_though_written_as_fractions(kind: str, tmp_path: Path) -> None:
    """As pandas does where some rows have none."""
    images(tmp_path)
    numbers = [float(n) for n in range(COUNT)]
    paths = sorted(str(path) for path in tmp_path.glob("*/im.*"))
    column = [Path(path).read_bytes() for path in paths] if kind == "rows" else paths
    rows = pa.table({"file": column, "label": numbers})
    place = tmp_path / ("list.csv" if kind == "csv" else "list.parquet")
    pa.csv.write_csv(rows, place) if kind == "csv" else pq.write_table(rows, place)
    args = [str(place), "--image", "file", "--out", str(tmp_path / "out"), "--json"]
    assert main_build(args) == 0
    found = held(tmp_path / "out", tmp_path / "cache")
    assert found == {Path(path).read_bytes(): n for n, path in enumerate(paths)}
    assert read_listing(str(tmp_path / "out"), {}).sets["train"].classes is None


def test_a_class_that_may_not_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def guarded(folder: str) -> Any:
        if Path(folder).name in ("bee", "lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    images(tmp_path)
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match="bee cannot be read: Permission denied"):
        source_of(tmp_path, {})
    (tmp_path / "bee").rename(tmp_path / "wasp")
    assert source_of(tmp_path, {}).classes == ["ant", "cat", "wasp"]


def test_the_columns_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    rows = pa.table({
        "image": [bytes_of(n) for n in range(4)],
        "fine": [5, 6, 7, 8],
        "coarse": ["dog", "cat", "dog", None],
    })  # fmt: skip
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1)
    args = [str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "out"), "--json"]
    assert main_build([*args, "--label", "fine"]) == 0
    assert held(tmp_path / "out", tmp_path / "cache") == {bytes_of(n): 5 + n for n in range(4)}
    assert main_build([*args, "--label", "coarse"]) == 2, "another build's shards are there"
    assert main_build([*args, "--label", "coarse", "--force"]) == 0
    assert read_listing(str(tmp_path / "out"), {}).sets["train"].classes == ("cat", "dog")
    labels = read_index(tmp_path / "out" / "train-000000.tar").labels
    assert labels.tolist() == [1, 0, 1, UNLABELLED]


def test_a_manifest_is_taken_as_it_is_written(tmp_path: Path) -> None:
    images(tmp_path / "images")
    lines = ["path,label,key", "images/bee/im.01.JPEG,true,0001", "images/ant/im.00.png,false,0010"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    args = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--shuffle", "none"]
    assert main_build([*args, "--json"]) == 0
    index = read_index(tmp_path / "out" / "train-000000.tar")
    assert (index.keys, index.labels.tolist()) == (["0001", "0010"], [1, 0])
    assert read_listing(str(tmp_path / "out"), {}).sets["train"].classes == ("False", "True")


def test_tables_that_a_saved_data_set_does_not_name_are_not_its_own(tmp_path: Path) -> None:
    folder = table("arrow", tmp_path / "table")
    files = sorted(file.name for file in folder.iterdir())
    state = {"_data_files": [{"filename": name} for name in files]}
    (folder / "state.json").write_text(json.dumps(state))
    shutil.copy(folder / files[0], folder / "cache-0123456789abcdef.arrow")
    assert len(source_of(folder, {})) == COUNT


def test_verify_and_stats_tell_of_a_good_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    build(source_of(images(tmp_path / "images"), {}), out, RECIPE)
    assert main_verify([str(out), "--images", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "shards": 3, "samples": 11, "unlabelled": 0, "without_index": 0, "problems": [],
    }  # fmt: skip
    assert main_stats([str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == {"ant": 4, "bee": 4, "cat": 3}
    assert told["bytes_of_images"] == sum(len(bytes_of(n)) for n in range(COUNT))
    assert main_stats([str(out)]) == 0
    assert "3 shards, 11 samples" in capsys.readouterr().out


def test_the_index_of_shards_that_are_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source_of(images(tmp_path / "images"), {}), out, RECIPE)
    listing = read_listing(str(out), {})
    rows = (out / "index.parquet").read_bytes()
    for name in ("index.json", "index.parquet"):
        (out / name).unlink()
    before = ShardSet.open(str(out), tmp_path / "cache").fingerprint
    assert main_build(["--index", str(out), "--json"]) == 0
    assert read_listing(str(out), {}).shards == listing.shards
    assert (out / "index.parquet").read_bytes() == rows
    assert ShardSet.open(str(out), tmp_path / "cache").fingerprint == before


def test_packed_shards_and_no_hidden_files_are_indexed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    three_shards(folder)
    (folder / "._part-000000.tar").write_bytes(b"left by another system")
    plain = folder / "part-000001.tar"
    plain.with_suffix(".tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert main_build(["--index", str(folder), "--json"]) == 0
    shards = ShardSet.open(str(folder), tmp_path / "cache")
    assert [shards.read(n) for n in range(16)] == [encoded(picture(n)) for n in range(16)]
    assert main_verify([str(folder), "--json"]) == 0


def test_somebody_elses_index_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "a.tar", range(3))
    (tmp_path / "index.json").write_text('{"theirs": 1}')
    for words in (
        ["--index", str(tmp_path)],
        [str(images(tmp_path / "i")), "--out", str(tmp_path)],
    ):
        assert main_build([*words, "--json"]) == 2
        assert "index.json is no index of stoplab's, and is kept" in capsys.readouterr().err
    assert (tmp_path / "index.json").read_text() == '{"theirs": 1}'
    assert not list(tmp_path.glob("train-*"))


@pytest.mark.parametrize("theirs", [None, b"no table"])
def test_somebody_elses_rows_are_not_counted(
    theirs: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(tmp_path / "a.tar", {"a.png": bytes_of(0), "a.cls": b"999999999"})
    assert main_build(["--index", str(tmp_path), "--json"]) == 0
    if theirs is None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "index.parquet")
    else:
        (tmp_path / "index.parquet").write_bytes(theirs)
    capsys.readouterr()
    assert main_stats([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"999999999": 1}
    shard(tmp_path / "b.tar", range(3))
    assert main_build(["--index", str(tmp_path), "--json"]) == 0
    assert len(pq.read_table(tmp_path / "index.parquet")) == 4
