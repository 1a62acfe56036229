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
"""Passes of a size that are computed as they are; the next one gets a graph. Capturing it takes
about as long as so many replays save, and libraries must have chosen their kernels before."""
MOST = 256
"""Graphs of a run: each takes memory of the GPU beside that which they share."""

Tensors = Sequence[Tensor | None]
Key = tuple[object, ...]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    arguments: list[Tensor | None]
    """Buffers that it reads."""
    results: list[Tensor | None]
    """Buffers that it fills."""


class Graphs:
    """Graphs of a function that adds to the gradients of ``weights``, by the sizes it was given.

    Activations of all of them share one memory, beside that of passes without a graph: they are
    captured only where the GPU has room for both.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights
        self._graphs: dict[Key, _Graph] = {}
        self._plain_calls: Counter[Key] = Counter()
        self._buffers: dict[Key, Tensor] = {}
        self._gradients: list[Tensor] = []
        self._pool = torch.cuda.graph_pool_handle()
        # When a graph goes, cuBLAS's workspace on its stream may go too (pytorch/pytorch#193402).
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def take(self, arguments: Tensors) -> bool:
        """Whether this pass is to be a graph's; one that is not is counted."""
        key = self._key(arguments)
        if key in self._graphs:
            return True
        self._plain_calls[key] += 1
        return self._plain_calls[key] > PLAIN_CALLS and self.count < MOST and has_room()

    def __call__(self, function: Callable[..., Tensors], arguments: Tensors) -> list[Tensor | None]:
        """The results of ``function``; the gradients lie where later calls put theirs.

        It is the same one each time. It must depend on nothing but its arguments and tensors that
        stay where they are, and wait for nothing.
        """
        key, present = self._key(arguments), self._present_gradients()
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        if present and present[0] is not self._gradients[0]:  # those of a pass without a graph
            torch._foreach_copy_(self._gradients, present)
        if key not in self._graphs:
            self._graphs[key] = self._captured(function, arguments)
        found = self._graphs[key]
        _copy(arguments, found.arguments)
        found.graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return [None if result is None else result.clone() for result in found.results]

    def _key(self, arguments: Tensors) -> Key:
        """What a graph is of: sizes, and whether there are gradients that it adds to."""
        shapes = (None if argument is None else argument.shape for argument in arguments)
        return self._weights[0].grad is not None, *shapes

    def _present_gradients(self) -> list[Tensor]:
        """Of all weights or of none."""
        found = [weight.grad for weight in self._weights if weight.grad is not None]
        assert len(found) in (0, len(self._weights)), "a weight has no gradient"
        return found

    def _captured(self, function: Callable[..., Tensors], arguments: Tensors) -> _Graph:
        join = torch._foreach_add_ if self._present_gradients() else torch._foreach_copy_
        for weight in self._weights:
            weight.grad = None
        given = self._buffers_for("argument", arguments)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread asks of the GPU meanwhile does not end the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            results = function(*given)
            join(self._gradients, self._present_gradients())
            kept = self._buffers_for("result", results)
            _copy(results, kept)
        return _Graph(graph, given, kept)

    def _buffers_for(self, use: str, tensors: Tensors) -> list[Tensor | None]:
        """Memory for arguments or results: all of one size share it."""
        return [
            None if tensor is None else self._buffer((use, number, tensor.shape), tensor)
            for number, tensor in enumerate(tensors)
        ]

    def _buffer(self, key: Key, like: Tensor) -> Tensor:
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(like)
        return self._buffers[key]


def _copy(tensors: Tensors, buffers: Tensors) -> None:
    for tensor, buffer in zip(tensors, buffers, strict=True):
        if tensor is not None and buffer is not None:
            buffer.copy_(tensor)


def has_room() -> bool:
    """Whether the GPU holds what a pass takes at its peak twice: with and without a graph."""
    free, total = torch.cuda.mem_get_info()
    used = torch.cuda.memory_allocated()
    unused = free + torch.cuda.memory_reserved() - used
    peak = torch.cuda.max_memory_allocated() - used
    return unused > 2.25 * peak + 0.05 * total
