"""What is chosen by hardware, how fast it multiplies, and the way of a tensor onto it."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.run import ComputeSpec

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices whose product is timed
TIMES = 10


def device_of(compute: ComputeSpec) -> torch.device:
    """Where a process computes; ValueError where the GPU it asks for is not there."""
    if compute.gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("compute.gpus_per_worker asks for a GPU, and torch sees none here")
    return torch.device("cuda", torch.cuda.current_device())


def precision(spec: RunSpec, device: torch.device) -> str:
    """`fp32` or `bf16`: by hardware unless the spec says so (docs/performance.md has numbers)."""
    if spec.compute.precision != "auto":
        return spec.compute.precision
    return "bf16" if device.type == "cuda" else "fp32"


def compiles(spec: RunSpec, device: torch.device) -> bool:
    """Whether transformer blocks are compiled: on GPUs, unless the spec says so."""
    return spec.compute.compile == "on" or (
        spec.compute.compile == "auto" and device.type == "cuda"
    )


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, measured once a process."""
    side, drawn = SIDE[device.type], torch.Generator(device).manual_seed(0)
    # Of plain numbers a GPU's product is faster: its clocks rise where few bits change.
    one, other = (
        torch.randn(side, side, generator=drawn, device=device).to(dtype) for _ in range(2)
    )
    out = one @ other  # the first one chooses its kernel
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(TIMES):
        torch.mm(one, other, out=out)
    wait_for(device)
    return TIMES * 2 * side**3 / (time.perf_counter() - begin)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; the host does not wait until a GPU has it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
