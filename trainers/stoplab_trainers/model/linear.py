"""Linear maps by the library that multiplies fastest on this processor.

For fp32 on CPUs torch asks MKL, which uses AVX-512 on Intel's processors alone: on AMD's its
products reach half the rate of oneDNN's (Zen 5), or 0.9 of it (Zen 4; docs/performance.md). Torch
carries oneDNN along; the operator used here is the one that its own compiler calls for linear
layers on CPUs.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LEAST = 2**24
"""Multiplications from which on a better product makes up for a longer call: about 0.1 ms."""


def linear(
    x: Float[Tensor, "*row k"], weight: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None
) -> Float[Tensor, "*row n"]:
    """x W^T + b, as `F.linear`; which library computes it follows from processor and sizes."""
    # Sizes last: asking a compiler's symbols for them would fix the batch of what it compiles.
    if _is_plain(x) and onednn_is_faster() and x.numel() * len(weight) >= LEAST:
        return cast(Tensor, _OneDnn.apply(x, weight, bias))
    return F.linear(x, weight, bias)


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor by AMD with AVX-512, and torch has oneDNN's operator."""
    is_amd = str(torch.cpu.get_capabilities().get("cpu_name", "")).startswith("AMD")
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_amd and has_avx512 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_plain(x: Tensor) -> bool:
    """fp32 on a CPU, in no graph that somebody else will compile or export."""
    is_fp32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and is_fp32 and not torch.compiler.is_compiling()


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = outputs
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows, grad_rows = x.flatten(0, -2), grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if of_x else None,
            _weight_gradient(rows, grad_rows) if of_weight else None,
            grad_rows.sum(dim=0) if of_bias else None,
        )


def _weight_gradient(
    rows: Float[Tensor, "row k"], grads: Float[Tensor, "row n"]
) -> Float[Tensor, "n k"]:
    """grads^T rows; of the two ways to ask for it the faster one, by its shape."""
    if grads.shape[1] > rows.shape[1]:
        return _product(rows.t(), grads.t()).t().contiguous()
    return _product(grads.t(), rows.t())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return cast(Tensor, found)
