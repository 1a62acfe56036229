from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stoplab_sweeps.paired import difference
from stoplab_sweeps.table import main
from support_comparison import KEYS

ROWS = """seed,arm,acc,note
0,stochastic,0.54,a
0,deterministic,0.50,b
1,deterministic,0.52,c
1,stochastic,0.57,d
2,stochastic,0.53,e
2,deterministic,0.48,f
"""
COLUMNS = ("--block", "seed", "--arm", "arm", "--metric", "acc")


class Judge:
    """The command on a text, and what it said."""

    def __init__(self, folder: Path, capsys: Any) -> None:
        self.file, self.capsys = folder / "results.csv", capsys

    def __call__(self, text: str, *words: str, code: int = 0, json_too: bool = True) -> Any:
        self.file.write_text(text)
        flag = ["--json"] if json_too else []
        assert main([str(self.file), *COLUMNS, *flag, *words]) == code
        out = self.capsys.readouterr().out
        return json.loads(out) if json_too else out

    def problems(self, text: str, *words: str) -> list[tuple[str, str]]:
        """Path and message of each."""
        return [(e["path"], e["message"]) for e in self(text, *words, code=2)["errors"]]


@pytest.fixture
def judge(tmp_path: Path, capsys: Any) -> Judge:
    return Judge(tmp_path, capsys)


def test_the_result_has_the_schema_of_every_comparison(judge: Judge) -> None:
    judged = judge(ROWS)
    assert set(judged) >= KEYS
    assert (judged["metric"], judged["reference"], judged["other"]) == (
        "acc", "deterministic", "stochastic",
    )  # fmt: skip
    own = difference([0.50, 0.52, 0.48], [0.54, 0.57, 0.53], min_effect=0.005)
    assert judged["delta"] == own.delta == pytest.approx(0.14 / 3)
    assert judged["ci95"] == list(own.ci95 or ())
    assert judged["p_sign_flip"] == own.p_sign_flip
    assert (judged["verdict"], judged["n_blocks"], judged["min_effect"]) == ("better", 3, 0.005)
    assert (judged["certificate"], judged["baseline"]) == (None, None)
    assert judged["blocks"][0] == {
        "seed": 0,
        "values": {"deterministic": 0.50, "stochastic": 0.54},
        "delta": pytest.approx(0.04),
        "deltas": {"stochastic": pytest.approx(0.04)},
        "run_ids": {"deterministic": None, "stochastic": None},
    }


def test_the_reference_can_be_named(judge: Judge) -> None:
    judged = judge(ROWS, "--reference", "stochastic", "--min-effect", "0.1", "--alpha", "0.1")
    assert judged["delta"] == pytest.approx(-0.14 / 3)
    assert (judged["verdict"], judged["min_effect"], judged["alpha"]) == ("worse", 0.1, 0.1)


def test_blocks_may_have_any_names_and_half_ones_are_left_out(judge: Judge) -> None:
    text = ROWS.replace("\n2,", "\nMonday,") + "half,stochastic,0.9,\nnone,deterministic,,\n"
    judged = judge(text + "none,stochastic,nan,\n")
    assert [block["seed"] for block in judged["blocks"]] == ["0", "1", "Monday", "half", "none"]
    assert (judged["n_blocks"], judged["complete"]) == (3, False)
    assert judged["arms"]["stochastic"]["n"] == 3


def test_for_people_it_is_a_table_and_a_sentence(judge: Judge) -> None:
    text = judge(ROWS, json_too=False)
    assert "+0.0400" in text
    assert "stochastic is better than deterministic: acc +0.0467" in text
    assert "note: 3 blocks cannot get a sign-flip p below 0.25" in text


def test_two_arms_without_a_known_reference_are_named(judge: Judge) -> None:
    ((path, message),) = judge.problems(ROWS.replace("deterministic", "off"))
    assert path == "reference"
    assert "['stochastic', 'off']" in message
    assert "--reference" in message
    ((path, message),) = judge.problems(ROWS, "--reference", "of")
    assert (path, "'of' is no arm" in message) == ("reference", True)


def test_everything_wrong_is_told_at_once(judge: Judge) -> None:
    bad = ROWS + "3,stochastic,high,\n1,stochastic,0.5,\n,stochastic,0.5,\n4,stochastic,inf,\n"
    found = judge.problems(bad, "--alpha", "0.7", "--min-effect", "-1")
    assert [path for path, _ in found] == [
        "min_effect", "alpha", "metric", "file", "file", "metric",
    ]  # fmt: skip
    messages = [message for _, message in found]
    assert "row 8, column 'acc': 'high'" in messages[2]
    assert "row 9: block '1', arm 'stochastic' stands in row 5 too" in messages[3]
    assert "row 10" in messages[4]
    assert "row 11, column 'acc': 'inf'" in messages[5]


def test_missing_columns_and_single_arms(judge: Judge) -> None:
    found = judge.problems(ROWS.replace("seed,arm,acc", "run,who,acc"))
    assert [path for path, _ in found] == ["block", "arm"]
    assert "['run', 'who', 'acc', 'note']" in found[0][1]
    ((path, _),) = judge.problems("seed,arm,acc\n0,deterministic,0.5\n")
    assert path == "arm"
    assert judge.problems("seed,arm,acc\n") == [("file", "holds no rows below its header")]
    assert [path for path, _ in judge.problems("")] == ["block", "arm", "metric"]


def test_what_a_table_could_mean_two_ways_is_refused(judge: Judge) -> None:
    twice = judge.problems("seed,arm,acc,acc\n0,deterministic,0.5,0.6\n")
    assert twice == [("metric", "2 columns are called 'acc'")]
    ((path, message),) = judge.problems(f"{ROWS}3,stochastic,0,5,x\n")
    assert (path, message) == ("file", "row 8: more fields than the header names")
    ((path, message),) = judge.problems(f"{ROWS}3,stochastic,1_0,x\n")
    assert (path, message) == ("metric", "row 8, column 'acc': '1_0' is no finite number")


@pytest.mark.parametrize("large", ["1e308", "-1e308", "1e200", "-1.1e100"])
def test_numbers_that_nothing_can_be_computed_of_are_refused(judge: Judge, large: str) -> None:
    ((path, message),) = judge.problems(f"{ROWS}3,stochastic,{large},x\n3,deterministic,0.5,x\n")
    assert path == "metric"
    assert message == f"row 8, column 'acc': '{large}' is too large; give numbers to 1e+100"


def test_large_numbers_are_judged(judge: Judge) -> None:
    text = f"{ROWS}3,stochastic,-1e100,x\n3,deterministic,1e100,x\n"
    judged = judge(text)
    assert (judged["n_blocks"], judged["verdict"]) == (4, "inconclusive")


def test_whole_numbers_are_seeds_unless_two_are_the_same(judge: Judge) -> None:
    assert [one["seed"] for one in judge(ROWS)["blocks"]] == [0, 1, 2]
    text = ROWS.replace("\n1,", "\n00,")
    assert [one["seed"] for one in judge(text)["blocks"]] == ["0", "00", "2"]


def test_names_in_the_header_may_be_padded(judge: Judge) -> None:
    assert judge(ROWS.replace("seed,arm,acc", "seed , arm, acc"))["n_blocks"] == 3


def test_a_column_has_one_meaning(judge: Judge) -> None:
    found = judge.problems(ROWS, "--block", "arm", "--metric", "arm")
    assert found == [
        ("arm", "column 'arm' is that of --block already"),
        ("metric", "column 'arm' is that of --block already"),
    ]


def test_for_people_every_statistic_is_told(judge: Judge) -> None:
    text, judged = judge(ROWS, json_too=False), judge(ROWS)
    for name in ("p, paired t", "p, sign flips", "effect size d_z", "95 % interval, unpaired"):
        assert name in text, name
    assert f"{judged['p_t']:.4f}" in text
    assert f"{judged['d_z']:.2f}" in text


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "none.csv"), *COLUMNS]) == 2
    assert "No such file" in capsys.readouterr().err


def test_it_starts_without_torch_and_ray(tmp_path: Path) -> None:
    code = "import sys, stoplab_sweeps.table; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
