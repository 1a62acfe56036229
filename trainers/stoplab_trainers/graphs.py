"""Passes that a GPU is asked for at once, and not kernel by kernel: CUDA graphs.

A GPU of today is done with a kernel of a small model before Python has launched the next one. A
graph holds all launches of a forward and backward pass, for arguments of one size. Masks have few
sizes: `fixed` ones two to four, those of the `official` sampler about a hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PLAIN_CALLS = 5
"""Passes of a size that are computed as they are; the next one gets a graph. Making it takes about
as long as so many replays save, and libraries must have chosen their kernels before."""
MOST = 256
"""Graphs of a process: each takes some ten megabytes of the GPU's memory."""

Tensors = Sequence[Tensor | None]
Size = tuple[object, ...]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    arguments: list[Tensor | None]
    """Where it finds them."""
    results: list[Tensor | None]
    """Where it puts them."""


class Graphs:
    """Graphs of a function that adds to the gradients of ``weights``, by the sizes it was given.

    Activations of all of them share one memory, beside that of passes without a graph: they are
    made only where the GPU has room for both.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights
        self._graphs: dict[Size, _Graph] = {}
        self._plain: Counter[Size] = Counter()
        self._shared: dict[Size, Tensor] = {}
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()
        # Its own: with a graph goes the room of cuBLAS on its stream, which others may still use.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._graphs)

    def ready(self, arguments: Tensors) -> bool:
        """Whether the next pass of this size is a graph's; counts it where it is not."""
        size = self._size(arguments)
        if size in self._graphs:
            return True
        self._plain[size] += 1
        return self._plain[size] > PLAIN_CALLS and len(self) < MOST and has_room()

    def __call__(self, function: Callable[..., Tensors], arguments: Tensors) -> list[Tensor | None]:
        """The results of ``function``; the gradients lie where later calls put theirs.

        It is the same one each time. It must depend on nothing but its arguments and tensors that
        stay where they are, and wait for nothing.
        """
        size, found = self._size(arguments), self._found()
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        if found and found[0] is not self._gradients[0]:  # those of a pass without a graph
            torch._foreach_copy_(self._gradients, found)
        if size not in self._graphs:
            self._graphs[size] = self._made(function, arguments)
        made = self._graphs[size]
        _copy(arguments, made.arguments)
        made.graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return [None if result is None else result.clone() for result in made.results]

    def _size(self, arguments: Tensors) -> Size:
        """What a graph is of: sizes, and whether there are gradients that it adds to."""
        shapes = (None if argument is None else argument.shape for argument in arguments)
        return self._weights[0].grad is not None, *shapes

    def _found(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights if weight.grad is not None]

    def _made(self, function: Callable[..., Tensors], arguments: Tensors) -> _Graph:
        join = torch._foreach_add_ if self._found() else torch._foreach_copy_
        for weight in self._weights:
            weight.grad = None
        given = self._rooms("argument", arguments)
        graph = torch.cuda.CUDAGraph()
        # thread_local: others go on meanwhile, and pin memory or copy a checkpoint.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            results = function(*given)
            join(self._gradients, self._found())
            kept = self._rooms("result", results)
            _copy(results, kept)
        return _Graph(graph, given, kept)

    def _rooms(self, use: str, tensors: Tensors) -> list[Tensor | None]:
        """Memory for arguments or results: all of one size share it."""
        return [
            None if tensor is None else self._room((use, number, tensor.shape), tensor)
            for number, tensor in enumerate(tensors)
        ]

    def _room(self, size: Size, like: Tensor) -> Tensor:
        if size not in self._shared:
            self._shared[size] = torch.empty_like(like)
        return self._shared[size]


def _copy(tensors: Tensors, rooms: Tensors) -> None:
    for tensor, room in zip(tensors, rooms, strict=True):
        if tensor is not None and room is not None:
            room.copy_(tensor)


def has_room() -> bool:
    """Whether the GPU holds what a pass takes at its peak once more."""
    free, total = torch.cuda.mem_get_info()
    used = torch.cuda.memory_allocated()
    unused = free + torch.cuda.memory_reserved() - used
    peak = torch.cuda.max_memory_allocated() - used
    # Beside the graphs' memory there will be that of passes without.
    return unused > 2.25 * peak + 0.05 * total
