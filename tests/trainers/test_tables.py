"""Tables that no shards can be built of: told by the file, the column or the row."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from stoplab_trainers.data.build import main as build


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"image": ["a.png"]}], "'image' holds string, no images' bytes"),
        ([{"image": [[b"GIF8"]]}], "'image' holds list"),
        ([{"image": [b"GIF8"], "label": [1 << 40]}], "row 0 has the label 1099511627776"),
        ([{"image": [b"GIF8"], "label": [0.5]}], "the label 0.5 is no whole number"),
        ([{"image": [b"GIF8"], "name": [None]}], "row 0 has no key"),
        ([{"image": [b"GIF8"], "name": ["a/"]}], "row 0 would get the key 'a/', which"),
        (
            [{"image": [b"GIF8"], "name": ["a.b"]}, {"image": [b"GIF8"], "name": ["a_b"]}],
            "rows 0 and 1 would both get the key 'a_b'",
        ),
        ([{"image": [b"GIF8"], "label": [1]}, {"image": [b"GIF8"]}], "1.parquet has no column"),
        (
            [{"image": [b"GIF8"], "label": [1]}, {"image": [b"GIF8"], "label": ["x"]}],
            "'label' holds string in 1.parquet and int64 in 0.parquet: write them alike",
        ),
    ],
)
def test_tables_that_cannot_be_built_are_told(
    parts: list[dict[str, Any]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, columns in enumerate(parts):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    key = ["--key", "name"] if "name" in parts[0] else []
    assert build([str(tmp_path), "--out", str(tmp_path / "out"), *key]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("where", ["within", "manifest", "notes", "classes"])
def test_broken_tables_are_named(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"image": [b"GIF8" * 99], "label": ["ant"]})
    source = tmp_path
    if where in ("within", "manifest"):  # and not at its end, which tells of its parts
        if where == "manifest":
            table, source = pa.table({"path": ["a.gif"] * 99}), tmp_path / "a.parquet"
        pq.write_table(table, file := tmp_path / "a.parquet")
        data = file.read_bytes()
        file.write_bytes(data[:4] + b"broken" + data[10:])
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as sink:
            sink.write_table(table)
        file = tmp_path / ("state.json" if where == "notes" else "dataset_info.json")
        file.write_text("{")
    assert build([str(source), "--out", str(tmp_path / "out")]) == 2
    assert f"{file} cannot be read: " in capsys.readouterr().err


def test_the_features_of_lists_of_classes_name_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = {"info": {"features": {"label": [{"names": ["ant"], "_type": "ClassLabel"}]}}}
    table = pa.table({"image": [b"GIF8"], "label": [[0]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert build([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "'label' holds list" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_key_may_be_the_number_zero(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF8")
    table, manifest = pa.table({"path": ["a.gif"], "key": [0]}), tmp_path / f"list.{kind}"
    (csv.write_csv if kind == "csv" else pq.write_table)(table, manifest)
    assert build([str(manifest), "--out", str(tmp_path / "out")]) == 0
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == ["0.gif"]


def test_columns_with_a_space_at_an_end_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest := tmp_path / "list.csv").write_text("path, label\na.gif, 1\n")
    assert build([str(manifest), "--out", str(tmp_path / "out")]) == 2
    assert "columns [' label'] have a space at an end" in capsys.readouterr().err
