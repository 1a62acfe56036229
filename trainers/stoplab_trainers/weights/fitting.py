"""Whether given weights fit a model: every unknown, missing and misshapen one, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stoplab_platform.errors import CheckpointError
from stoplab_trainers.model.positions import sincos_2d

TABLE_ATOL = 1e-4  # others round their tables elsewhere; a neighbour's row is 1 away and more


@dataclass(frozen=True)
class Part:
    """A module, and what a file holds for it.

    Attributes:
        name: what the file calls it.
        module: what is to be filled.
        given: the file's weights, by its own names.
        spelled: from our name of a weight to the file's.
        fixed: our names of the position tables that are computed: they are not loaded, so their
            grids may differ, and the file may lack them.
    """

    name: str
    module: nn.Module
    given: Mapping[str, Any]
    spelled: Callable[[str], str]
    fixed: frozenset[str]


def fixed_tables(student: nn.Module) -> frozenset[str]:
    """Names of a student's position tables that are computed, not learned."""
    return frozenset(
        name
        for name, parameter in student.named_parameters()
        if name.endswith("pos_embed") and not parameter.requires_grad
    )


def fill(parts: Sequence[Part], others: Sequence[str] = ()) -> None:
    """Copy each part's weights into its module, or none at all.

    CheckpointError names every key that is unknown, missing or misshapen in any part, and
    ``others``, which are wrong in another way.
    """
    wrong = [fault for part in parts for fault in _faults(part)]
    wrong += others
    if wrong:
        raise CheckpointError("the weights do not fit this model:\n  " + "\n  ".join(wrong))
    for part in parts:
        own = part.module.state_dict()
        loaded = {n: v if n in part.fixed else part.given[part.spelled(n)] for n, v in own.items()}
        part.module.load_state_dict(loaded)


def _faults(part: Part) -> Iterator[str]:
    given = part.given
    expected = {part.spelled(name): value for name, value in part.module.state_dict().items()}
    fixed = {part.spelled(name) for name in part.fixed}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    shapes = [
        f"{name} {list(tensors[name].shape)} (here {list(own.shape)})"
        for name, own in expected.items()
        if name in tensors and name not in fixed and tensors[name].shape != own.shape
    ]
    kinds = {
        "unknown": sorted(given.keys() - expected.keys()),
        "missing": sorted(expected.keys() - given.keys() - fixed),
        "not a tensor": sorted((expected.keys() & given.keys()) - tensors.keys()),
        "of another shape": shapes,
        "not the sin-cos table that positions are here": sorted(
            name for name in fixed & tensors.keys() if not is_table(tensors[name])
        ),
    }
    for kind, names in kinds.items():
        if names:
            yield f"{part.name}: {kind}: {', '.join(names)}"


def is_table(value: Tensor) -> bool:
    """Whether it is the fixed table [1, patch, width] of some square grid."""
    if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] % 4:
        return False
    grid = round(value.shape[1] ** 0.5)
    if grid**2 != value.shape[1]:
        return False
    return torch.allclose(value[0].float(), sincos_2d(value.shape[2], grid), atol=TABLE_ATOL)
