"""What a run costs before it runs: parameters, floating-point operations, memory.

Parameters are exact. Operations are those of the matrix products, two a multiply-add, on the mean
numbers of tokens that the masks leave. Memory is an estimate with a band. How long it takes is
told by `rates` and `estimates`.
"""

from __future__ import annotations

from dataclasses import dataclass

from stoplab_platform.mask_blocks import pair_odds
from stoplab_platform.mask_plugin import OwnMasks
from stoplab_platform.masks import context_tokens, num_blocks, target_tokens
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.masking import BlockSpec, MaskingSpec
from stoplab_platform.specs.model import VitSizes
from stoplab_platform.specs.objective import COLOURS
from stoplab_platform.specs.positions import StochasticPositions

COARSE = 16
"""Patches along the side of the grid on which masks are looked at, at most: shares of larger
grids are the same within two per cent, and take minutes."""
MOST_PAIRS = 64
"""Pairs of block sizes that are looked at; blocks with more stand at the middle of their ranges."""
FP32, BF16 = 4, 2  # bytes
RUNTIME = 600 * 2**20
"""Bytes of a process with torch and a data loader, or of a GPU's context, before any model."""
ACTIVATIONS_LOW, ACTIVATIONS_HIGH = 0.8, 1.6
"""Band of the activations: what is freed early, and what passes through at the peak."""


@dataclass(frozen=True)
class Range:
    """A number and the band that it is told with."""

    low: float
    value: float
    high: float

    def __mul__(self, times: float) -> Range:
        return Range(self.low * times, self.value * times, self.high * times)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.value + other.value, self.high + other.high)


@dataclass(frozen=True)
class Parameters:
    """Trained weights; the fixed position tables are none."""

    encoder: int
    predictor: int

    @property
    def trained(self) -> int:
        """What has gradients: encoder and predictor."""
        return self.encoder + self.predictor


@dataclass(frozen=True)
class Flops:
    """Operations for one image."""

    target: float
    """The EMA encoder on the whole image, forward; 0 where pixels are the targets."""
    context: float
    """The encoder on the kept patches, forward."""
    predictor: float
    """The predictor on every target block, forward."""
    train: float
    """One image of a training step: all three, the way back through the last two, and what
    `compute.activation_checkpointing` has their blocks compute again."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its peak, and what they go to."""

    weights: int
    gradients: int
    optimizer: int
    target: int
    activations: int
    checkpoint: int
    """The first worker's copy of the state, from which it is written while the training goes on;
    0 on a GPU, whose copy lies in the machine's memory."""
    runtime: int
    total: Range


def parameters(spec: RunSpec) -> Parameters:
    """Trained parameters of a run's encoder and predictor."""
    return Parameters(encoder_parameters(spec.model.sizes()), _predictor_parameters(spec))


def encoder_parameters(sizes: VitSizes) -> int:
    """Trained parameters of a plain ViT without class token."""
    patch = COLOURS * sizes.patch_size**2
    return (patch + 1) * sizes.width + _stack(sizes.depth, sizes.width, _hidden(sizes))


def flops(spec: RunSpec) -> Flops:
    """Operations for one image of a run."""
    sizes, kept = spec.model.sizes(), _kept(spec)
    target = _target_flops(spec) if spec.objective.averages else 0.0
    context = encoder_flops(sizes, kept)
    predictor, noise = _predictor_flops(spec, kept)
    # No gradient flows into pixels or into the noise: there only the weight's own is computed.
    fixed = _patch_flops(sizes, kept) + noise
    train = target + 3 * (context + predictor) - fixed
    if spec.compute.activation_checkpointing:
        # All of a block but the last of its products, which nothing on the way back asks for.
        train += sizes.depth * _block_flops(sizes.width, _hidden(sizes) / 2, kept, kept)
        train += _predictor_blocks(spec, kept, _predictor_hidden(spec) / 2)
    return Flops(target, context, predictor, train)


def step_flops(spec: RunSpec, context_tokens: float, target_tokens: float) -> float:
    """Operations for one image of a step as published, at the lengths that its masks had.

    All rows in all blocks, the way back at twice the way there: what utilisation is counted in,
    whatever is left out as nobody reads it. (`flops` counts what is really computed.)
    """
    sizes, narrow = spec.model.sizes(), spec.model.predictor
    rows, hidden = context_tokens + target_tokens, _predictor_hidden(spec)
    block = narrow.depth * _block_flops(narrow.width, hidden, rows, rows)
    out = 2 * narrow.width * _predicted(spec) * target_tokens
    predictor = 2 * sizes.width * narrow.width * context_tokens
    predictor += num_blocks(spec.masking, spec.grid) * (block + out)
    target = encoder_flops(sizes, spec.grid**2) if spec.objective.averages else 0.0
    return target + 3 * (encoder_flops(sizes, context_tokens) + predictor)


def encoder_flops(sizes: VitSizes, tokens: float) -> float:
    """A plain ViT on so many patches of one image, forward."""
    block = _block_flops(sizes.width, _hidden(sizes), tokens, tokens)
    return _patch_flops(sizes, tokens) + sizes.depth * block


def memory(spec: RunSpec) -> Memory:
    """Memory of one worker; under `fsdp` its shard of the student, and the whole target."""
    found, grid = parameters(spec), spec.grid**2
    tables = grid * (spec.model.sizes().width + spec.model.predictor.width)
    workers = spec.compute.workers
    shards = workers if spec.compute.strategy == "fsdp" else 1
    # Several workers with all weights each keep a second copy of the gradients to send from.
    copies = 1 if workers == shards else 2
    weights = FP32 * (found.trained + tables) // shards
    gradients = FP32 * found.trained * copies // shards
    optimizer = 2 * FP32 * found.trained // shards
    target = FP32 * (found.encoder + grid * spec.model.sizes().width) * spec.objective.averages
    activations = _activations(spec)
    state = FP32 * (3 * found.trained + tables) + target
    checkpoint = 0 if spec.compute.gpus_per_worker > 0 else state
    fixed = weights + gradients + optimizer + target + checkpoint + RUNTIME
    total = Range(ACTIVATIONS_LOW, 1, ACTIVATIONS_HIGH) * activations + Range(fixed, fixed, fixed)
    return Memory(weights, gradients, optimizer, target, activations, checkpoint, RUNTIME, total)


def coarse(masking: MaskingSpec, grid: int) -> tuple[MaskingSpec, int]:
    """The masking on a grid that can be looked at quickly, and that grid's side."""
    if isinstance(masking, OwnMasks):
        return masking, grid
    if masking.kind == "random":
        return masking, min(grid, COARSE)
    if grid > COARSE:
        fewest = max(1, round(masking.min_keep * (COARSE / grid) ** 2))
        masking, grid = masking.model_copy(update={"min_keep": fewest}), COARSE
    if len(pair_odds(masking, grid)) > MOST_PAIRS:
        blocks = {"target": _middle(masking.target), "context": _middle(masking.context)}
        masking = masking.model_copy(update=blocks)
    return masking, grid


def _middle(block: BlockSpec) -> BlockSpec:
    ranges = {"scale": block.scale, "aspect": block.aspect}
    middles = {name: ((low + high) / 2,) * 2 for name, (low, high) in ranges.items()}
    return block.model_copy(update=middles)


def _target_flops(spec: RunSpec) -> float:
    """The target encoder, whose last block computes the wanted rows alone, where they are fewer."""
    sizes, patches = spec.model.sizes(), spec.grid**2
    whole = encoder_flops(sizes, patches)
    wanted = num_blocks(spec.masking, spec.grid) * target_tokens(spec.masking, spec.grid)
    if getattr(spec.objective, "target_pool", None) or wanted >= patches:
        return whole
    hidden = _hidden(sizes)
    saved = _block_flops(sizes.width, hidden, patches, patches)
    return whole - saved + _block_flops(sizes.width, hidden, wanted, patches)


def _kept(spec: RunSpec) -> float:
    """Mean length of the context (patches)."""
    masking, grid = coarse(spec.masking, spec.grid)
    return context_tokens(masking, grid, batch_size=_local_batch(spec)) * (spec.grid / grid) ** 2


def _hidden(sizes: VitSizes) -> int:
    """Width inside the MLP; timm cuts it to a whole number."""
    return int(sizes.width * sizes.mlp_ratio)


def _predictor_hidden(spec: RunSpec) -> int:
    return 4 * spec.model.predictor.width


def _local_batch(spec: RunSpec) -> int:
    return spec.optim.batch_size // spec.compute.workers


def _stack(depth: int, width: int, hidden: int) -> int:
    """Blocks and the norm after them: weights, biases, norms."""
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    return depth * (attention + mlp + 4 * width) + 2 * width


def _predictor_parameters(spec: RunSpec) -> int:
    outer, width = spec.model.sizes().width, spec.model.predictor.width
    positions = spec.positions
    into, out = (outer + 1) * width, (width + 1) * _predicted(spec)
    token = width if positions.parametrization == "stoplab" else 0
    table = width * spec.grid**2 if positions.table == "learned" else 0
    own = 0
    if isinstance(positions, StochasticPositions) and positions.covariance == "untied":
        own = outer * width if positions.noise_std > 0 else 0
    stack = _stack(spec.model.predictor.depth, width, _predictor_hidden(spec))
    return into + token + table + own + stack + out


def _predicted(spec: RunSpec) -> int:
    """Channels of what the predictor predicts."""
    return spec.objective.output_width(spec.model.sizes())


def _patch_flops(sizes: VitSizes, tokens: float) -> float:
    return 2 * COLOURS * sizes.patch_size**2 * sizes.width * tokens


def _block_flops(width: int, hidden: float, queries: float, keys: float) -> float:
    """One transformer block in which ``queries`` of ``keys`` tokens are wanted."""
    weights = 4 * width * width * keys + 4 * width * width * queries + 4 * width * hidden * queries
    return weights + 4 * width * queries * keys


def _predictor_flops(spec: RunSpec, kept: float) -> tuple[float, float]:
    """All of it for one image, and of that the projection of the noise."""
    outer, width = spec.model.sizes().width, spec.model.predictor.width
    masked = num_blocks(spec.masking, spec.grid) * target_tokens(spec.masking, spec.grid)
    noise = 2 * outer * width * _noised(spec, kept, masked)
    ends = 2 * outer * width * kept + 2 * width * _predicted(spec) * masked
    return ends + _predictor_blocks(spec, kept, _predictor_hidden(spec)) + noise, noise


def _predictor_blocks(spec: RunSpec, kept: float, hidden: float) -> float:
    """Its blocks for one image; the last computes the wanted rows alone."""
    narrow, wanted = spec.model.predictor, target_tokens(spec.masking, spec.grid)
    rows = kept + wanted
    body = (narrow.depth - 1) * _block_flops(narrow.width, hidden, rows, rows)
    last = _block_flops(narrow.width, hidden, wanted, rows)
    return num_blocks(spec.masking, spec.grid) * (body + last)


def _noised(spec: RunSpec, kept: float, masked: float) -> float:
    """Tokens whose noise goes through a projection."""
    positions = spec.positions
    if positions.noise_std == 0 or positions.noise_in == "predictor":
        return 0.0
    both = {"masked": masked, "context": kept, "both": masked + kept}
    return both[positions.noise_on]


def _activations(spec: RunSpec) -> int:
    """What the student keeps for its way back, and the images; or the target's peak if larger."""
    sizes, predictor = spec.model.sizes(), spec.model.predictor
    half = spec.compute.precision == "bf16" or (
        spec.compute.precision == "auto" and spec.compute.gpus_per_worker > 0
    )
    kept = _kept(spec)
    blocks = num_blocks(spec.masking, spec.grid)
    rows = blocks * (kept + target_tokens(spec.masking, spec.grid))
    of_encoder = _kept_bytes(sizes.width, _hidden(sizes), half)
    of_predictor = _kept_bytes(predictor.width, _predictor_hidden(spec), half)
    student = kept * sizes.depth * of_encoder + rows * predictor.depth * of_predictor
    if spec.compute.activation_checkpointing:  # the blocks' inputs, and one block's at a time
        inputs = kept * sizes.depth * sizes.width + rows * predictor.depth * predictor.width
        student = FP32 * inputs + max(kept * of_encoder, rows * of_predictor)
    passing = spec.grid**2 * FP32 * (5 * sizes.width + 2 * _hidden(sizes)) * spec.objective.averages
    images = FP32 * COLOURS * spec.data.image_size**2
    together = _local_batch(spec) // spec.compute.accumulate
    return int(together * (max(student, passing) + images))


def _kept_bytes(width: int, hidden: int, half: bool) -> int:
    """What one block keeps of one token: two inputs of norms, six widths of products, the MLP's."""
    product = BF16 if half else FP32
    return 2 * FP32 * width + product * (6 * width + 2 * hidden)
