"""Every invariant of the method has a test, and a wrong method is caught by the right one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support_method import INVARIANTS, marked

HOUSE = Path(__file__).parents[1]


def test_each_has_a_test() -> None:
    assert set(INVARIANTS) == set(range(1, 29))
    assert set(marked()) == set(INVARIANTS)


class Mutation(NamedTuple):
    """A mistake that somebody could make, and the invariants that must notice."""

    file: str
    right: str
    wrong: str
    breaks: tuple[int, ...]


AVERAGED = (
    "    if run.averages:\n"
    "        for pairs in side_by_side(run.student, run.target, run.model.encoder):\n"
    "            update_ema(pairs, run.schedules.momentum(run.step))\n"
)
MUTATIONS = {
    "variance for std": Mutation(
        "trainers/stoplab_trainers/model/positions.py",
        "scaled = self.noise_std * unit",
        "scaled = self.noise_std**0.5 * unit",
        (5,),
    ),
    "noise on context": Mutation(
        "trainers/stoplab_trainers/model/predictor.py",
        "        if self.noise.on_context:\n",
        "        if self.noise.on_masked:\n"
        "            tokens = tokens + self.noise(noise.masked[:, 0, :1], self.embed.weight)\n"
        "        if self.noise.on_context:\n",
        (10,),
    ),
    "untied A": Mutation(
        "trainers/stoplab_trainers/model/positions.py",
        "return tied if self.proj is None else self.proj.weight",
        "return tied.detach().clone() if self.proj is None else self.proj.weight",
        (7, 8),
    ),
    "EMA before step": Mutation(
        "trainers/stoplab_trainers/step.py",
        f"    run.optimizer.step()\n{AVERAGED}",
        f"{AVERAGED}    run.optimizer.step()\n",
        (19,),
    ),
    "prefix truncation": Mutation(
        "platform/stoplab_platform/mask_samplers.py",
        "bits(keys, grid * grid, offset=CUT)",
        "np.arange(grid * grid, dtype=np.uint64)",
        (12,),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_breaks_the_right_ones(name: str, tmp_path: Path) -> None:
    """The same tests pass on the house as it is."""
    mutation = MUTATIONS[name]
    tests = [node for number in mutation.breaks for node in marked()[number]]
    assert failures(tests, tmp_path / "right", None) == set()
    failed = failures(tests, tmp_path / "wrong", mutation)
    print(f"{name}: {sorted(failed)}")
    for number in mutation.breaks:
        assert failed & set(marked()[number]), INVARIANTS[number]


def failures(tests: list[str], folder: Path, mutation: Mutation | None) -> set[str]:
    """The tests that fail on a copy of the sources with the mistake in it."""
    for root in ("platform", "trainers"):
        shutil.copytree(HOUSE / root, folder / root, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation:
        source = folder / mutation.file
        text = source.read_text()
        assert text.count(mutation.right) == 1, f"{mutation.file} no longer says {mutation.right!r}"
        source.write_text(text.replace(mutation.right, mutation.wrong))
    path = os.pathsep.join([str(folder / "platform"), str(folder / "trainers")])
    words = ["-q", "-rfE", "-m", "", "-o", f"cache_dir={folder / 'cache'}", "--no-postgres"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *tests],
        cwd=HOUSE, env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert re.search(r"\d+ (passed|failed)", done.stdout), done.stdout
    found = re.findall(r"^(?:FAILED|ERROR) (tests/\S+?)(?:\[| -|$)", done.stdout, re.MULTILINE)
    return set(found)
