from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pytest
from pyarrow import parquet

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.trials import Choice, as_csv, as_parquet, in_order, rows

NOISE, SCALE = "positions.noise_std", "masking.target.scale"


def cell(name: str, score: float | None = None, **more: Any) -> Cell:
    metrics = {} if score is None else {"val/knn_top1": score}
    state = CellState.SUCCEEDED if metrics else CellState.PENDING
    fields = {"id": name, "index": 0, "seed": 0, "state": state, "metrics": metrics, **more}
    return Cell.model_validate(fields)


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
CELLS = [
    cell("a", 0.5, point={NOISE: 0.1, SCALE: [0.1, 0.2]}, started_at=NEW_YEAR),
    cell("b", 0.7, point={NOISE: 0.25, SCALE: None}, seed=1, arm="stochastic"),
    cell("c", None, point={NOISE: 0.25, SCALE: [0.1, 0.2]}, error="no, sorry"),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, "abc"),
        ({"states": [CellState.PENDING]}, "c"),
        ({"arms": ["stochastic"]}, "b"),
        ({"seeds": [0]}, "ac"),
        ({"point": {NOISE: ["0.250"]}}, "bc"),
        ({"point": {NOISE: ["0.1", "0.25"], SCALE: ["[0.1, 0.2]"]}}, "ac"),
        ({"point": {"optim.lr": ["1"]}}, ""),
        ({"point": {NOISE: ["much"]}}, ""),
        ({"least": {"val/knn_top1": 0.6}}, "b"),
        ({"most": {"val/knn_top1": 0.6}}, "a"),
    ],
)
def test_a_choice(wanted: dict[str, Any], names: str) -> None:
    choice = Choice(**wanted)
    assert "".join(one.id for one in CELLS if choice.takes(one)) == names


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("val/knn_top1", "abc"),
        ("-val/knn_top1", "bac"),
        (f"-{NOISE}", "bca"),
        ("-seed", "bac"),
        (SCALE, "acb"),
    ],
)
def test_an_order(sort: str, names: str) -> None:
    assert "".join(one.id for one in in_order(CELLS, sort)) == names


def test_an_order_by_nothing_that_is_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'nois' is none of"):
        in_order(CELLS, "nois")
    assert in_order(CELLS, "val/not_yet") == list(CELLS)


def test_a_swept_seed_does_not_hide_the_runs_seed() -> None:
    cells = [cell.model_copy(update={"point": {"seed": 7}}) for cell in CELLS]
    head, body = rows(cells)
    assert head.count("seed") == 1
    assert [row[head.index("seed")] for row in body] == [cell.seed for cell in cells]


def test_the_csv_has_a_row_a_cell_and_a_column_a_number() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(CELLS))))
    assert [row[NOISE] for row in rows] == ["0.1", "0.25", "0.25"]
    assert [row["val/knn_top1"] for row in rows] == ["0.5", "0.7", ""]
    assert [row["state"] for row in rows] == ["SUCCEEDED", "SUCCEEDED", "PENDING"]
    assert rows[0][SCALE] == "[0.1, 0.2]"
    assert rows[0]["started_at"] == "2026-01-01T00:00:00+00:00"
    assert rows[2]["error"] == "no, sorry"


def test_parquet_keeps_the_types() -> None:
    table = parquet.read_table(io.BytesIO(as_parquet(CELLS)))
    assert table["val/knn_top1"].to_pylist() == [0.5, 0.7, None]
    assert table[NOISE].to_pylist() == [0.1, 0.25, 0.25]
    assert table["seed"].to_pylist() == [0, 1, 0]
    assert table["started_at"].to_pylist() == [NEW_YEAR, None, None]
    assert table[SCALE].to_pylist() == ["[0.1, 0.2]", None, "[0.1, 0.2]"]


def test_parquet_of_nothing() -> None:
    assert parquet.read_table(io.BytesIO(as_parquet([]))).num_rows == 0
