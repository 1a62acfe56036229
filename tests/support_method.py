"""What StoP and I-JEPA must always fulfil, by number; `@pytest.mark.invariant` names them."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

TESTS = Path(__file__).parent

INVARIANTS = {
    1: "noise_std 0 is I-JEPA to the bit: outputs, loss, gradients, and no generator moves",
    2: "official parametrisation at noise_std 0 is I-JEPA with the bias as mask token",
    3: "without noise forwards repeat, with noise they differ; the encoder never sees it",
    4: "noised masked tokens are centred on position + mask token (or bias)",
    5: "their covariance is noise_std^2 A A^T, and not noise_std A A^T",
    6: "tokens, images and blocks have uncorrelated noise, also for one patch in two blocks",
    7: "A is one parameter: it moves context and masked tokens, and StoP adds none",
    8: "A learns from the context and from the noise",
    9: "at A = 0 antithetic noise leaves the gradient alone; untied, A = 0 is a rest",
    10: "context tokens carry no noise",
    11: "masks are ascending, unique, in range, equally long; context and targets are disjoint",
    12: "every patch is context and target at times",
    13: "masks end for every grid from 4 to 32, or are refused with the setting named",
    14: "masks are a function of seed and step, whoever draws them",
    15: "predictions and targets speak of the same patch",
    16: "target blocks do not see each other",
    17: "target tokens of a block have no order",
    18: "targets are normalised per token, carry no gradient, and do not know the student's mask",
    19: "the EMA target follows the optimiser's step, by its schedule, in fp32",
    20: "schedules at the golden steps; biases and vectors are not decayed; tables stay",
    21: "a resumed run is the undisturbed one, to the bit",
    22: "a missing or broken checkpoint raises, and never starts a run anew",
    23: "ranks have noise of their own, and their mean gradient is that of the whole batch",
    24: "eight images are learned without collapse",
    25: "bf16: targets, noise and loss in fp32, close to fp32, finite for a hundred steps",
    26: "the sin-cos table has the golden sums and axes; widths that do not divide are refused",
    27: "published checkpoints load with and without `module.`; wrong keys are all named",
    28: "probes: statistics of the training split, evaluation mode, the EMA encoder",
}
"""One line each, after METHOD 4.1."""


def marked() -> Mapping[int, list[str]]:
    """Node ids of the tests that hold each invariant, found in their source."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node, numbers in _in_module(path):
            for number in numbers:
                found[number].append(node)
    return found


def _in_module(path: Path) -> Iterator[tuple[str, list[int]]]:
    text = path.read_text()
    if "mark.invariant" not in text:
        return
    home = f"tests/{path.relative_to(TESTS)}"
    for item in ast.parse(text).body:
        if isinstance(item, ast.ClassDef):
            for test in item.body:
                if isinstance(test, ast.FunctionDef):
                    yield f"{home}::{item.name}::{test.name}", _numbers(test)
        elif isinstance(item, ast.FunctionDef):
            yield f"{home}::{item.name}", _numbers(item)


def _numbers(test: ast.FunctionDef) -> list[int]:
    """The arguments of its `invariant` marks."""
    marks = [ast.unparse(mark) for mark in test.decorator_list]
    return [
        number
        for mark in marks
        if mark.startswith("pytest.mark.invariant(")
        for number in ast.literal_eval(f"[{mark.split('(', 1)[1][:-1]}]")
    ]
