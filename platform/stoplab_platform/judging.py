"""How long evaluations take: one worker judges, however many have trained and now wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from stoplab_platform.cost import Range, encoder_flops, flops
from stoplab_platform.counting import Count, count_images
from stoplab_platform.rates import CPU_FLOPS, DECODED_PER_S, GPU_FLOPS, NARROW, THREADS, Rate
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.data import EMBEDDED_IMAGES
from stoplab_platform.specs.evals import FinetuneEval, LowShotEval, Protocol

MANY_IMAGES = 100_000
"""From so many labelled images on a set is taken to have ImageNet's thousand classes, below it
ten: a spec does not tell."""
UNCOUNTED = 0.1
"""Labelled shards that cannot be counted are taken for this share of the training set, as test
shards are for that of the labelled ones (assumed)."""
LISTED = 0.01  # of the labelled images, in a list of some: ImageNet's usual one
DECODERS = 16  # threads that decode labelled images for a GPU
FIT_STEPS = Range(150, 300, 1000)
"""Looks at all fitted rows for the five strengths of a probe. (Measured: 406 on the digits'
pixels, 249 and 167 on drawn features; at most 1,000 iterations each.)"""
STRENGTHS = 5
SOFTMAX = 200
"""What one class score of one row costs beside its products, in operations (measured: a fit on 64
features goes at half of the products' rate)."""
PIXEL_SIDE = 32  # to which larger images are brought where raw pixels are the features
ON_PIXELS = ("knn", "linear", "low_shot", "robustness")
HEADS = 10  # of linear_sgd, in widths of the encoder: twice one block's features, twice four


@dataclass(frozen=True)
class Labelled:
    """Numbers of labelled images."""

    fitted: float
    val: float
    test: float
    classes: int
    source: str
    """How they are known."""


@dataclass(frozen=True)
class Work:
    """What judging costs."""

    shown: float = 0.0
    """Images that an encoder sees."""
    device: float = 0.0
    """Operations beside the encoder's, on its device."""
    cpu: float = 0.0
    """Operations that a CPU does, wherever the encoder is."""
    fits: float = 0.0
    """Those of one look at the rows of each fit, of which there are `FIT_STEPS`; CPU as well."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__match_args__))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, name) * times for name in self.__match_args__))


def labelled(spec: RunSpec, counted: Count | None) -> Labelled | None:
    """The labelled images of a run whose training set is ``counted``; None where nothing tells."""
    data = spec.data.eval_data()
    if data is None:
        return None
    train, test = count_images(data.train), count_images(data.test)
    if train is None and counted is not None:
        train = (
            Count(counted.images, "they are the training images")
            if data.train == spec.data.train
            else Count(int(counted.images * UNCOUNTED), "assumed: a tenth of the training images")
        )
    if train is None:
        return None
    tested = test.images if test else train.images * UNCOUNTED
    val = count_images(data.val) if data.val else None
    apart = train.images * data.val_fraction
    return Labelled(
        fitted=train.images if data.val else train.images - apart,
        val=val.images if val else apart,
        test=tested,
        classes=1000 if train.images >= MANY_IMAGES else 10,
        source=f"{train.images} labelled images ({train.source})",
    )


def judging(spec: RunSpec, found: Rate, images: Labelled, *, scheduled: bool = True) -> Range:
    """Seconds of all evaluations: the trained and the untrained encoder and raw pixels at the end,
    and what is ``scheduled`` before it."""
    work, shared, epochs = Work(), 0, spec.optim.epochs
    width, pixels = spec.model.sizes().width, 3 * min(spec.data.image_size, PIXEL_SIDE) ** 2
    for one in spec.evals:
        between = (epochs - 1) // one.every_epochs if one.every_epochs and scheduled else 0
        shared = max(shared, between)
        work += _own(one, images, width, images.val) * between
        work += _own(one, images, width, images.val + images.test)
        work += _own(one, images, width, images.test)
        if one.kind in ON_PIXELS:
            own = _own(one, images, pixels, images.test)
            work += Work(cpu=own.device, fits=own.fits)
    # Protocols that look at the same weights share one pass over whole images.
    whole = (2 + shared) * (images.fitted + images.val) + 2 * images.test
    return _seconds(spec, found, work + Work(shown=whole), width)


def _own(one: Protocol, images: Labelled, width: int, judged: float) -> Work:
    """What one protocol costs for one encoder's features of this width, beside the shared pass."""
    if one.kind == "knn":
        return Work(device=2 * images.fitted * judged * width)
    if one.kind in ("linear", "robustness"):
        fit = _fit(images.fitted, width, images.classes, STRENGTHS)
        return Work(fits=fit, shown=5 * judged if one.kind == "robustness" else 0)
    if one.kind == "low_shot":
        rows, draws = _rows(one, images), 1 if one.list else one.draws
        strengths = 1 if one.penalty == "published" else STRENGTHS
        return Work(fits=draws * _fit(rows, width, images.classes, strengths))
    if one.kind == "linear_sgd":
        heads = 3 * 2 * HEADS * width * images.classes * one.epochs * images.fitted
        return Work(shown=one.epochs * images.fitted * one.augment, device=heads)
    if one.kind == "finetune":
        # A step costs three forward passes; after each epoch the validation split is told.
        return Work(shown=one.epochs * (3 * _rows(one, images) + images.val))
    return Work()  # a few hundred images


def _rows(amount: LowShotEval | FinetuneEval, images: Labelled) -> float:
    """Labelled rows that a protocol is given."""
    if amount.per_class is not None:
        return min(amount.per_class * images.classes, images.fitted)
    if amount.kind == "low_shot" and amount.list is not None:
        return LISTED * images.fitted
    return (amount.fraction or 1) * images.fitted


def _fit(rows: float, width: int, classes: int, strengths: int) -> float:
    """Operations of one look for every strength, as a part of all five's."""
    return rows * classes * (4 * width + SOFTMAX) * strengths / STRENGTHS


def _seconds(spec: RunSpec, found: Rate, work: Work, width: int) -> Range:
    compute, speed = spec.compute, found.samples_per_s
    share = encoder_flops(spec.model.sizes(), spec.grid**2) / flops(spec).train
    alone = work.shown * share * compute.workers
    passes = Range(alone / speed.high, alone / speed.value, alone / speed.low)
    cpu = CPU_FLOPS * (compute.resolved_threads**THREADS * width / (width + NARROW))
    device = cpu
    if compute.gpus_per_worker > 0:
        device = GPU_FLOPS
        if spec.data.train not in EMBEDDED_IMAGES:
            passes += _over(work.shown, DECODED_PER_S * DECODERS)
    look, steps = _over(work.fits, cpu), FIT_STEPS
    fits = Range(look.low * steps.low, look.value * steps.value, look.high * steps.high)
    return passes + _over(work.device, device) + _over(work.cpu, cpu) + fits


def _over(work: float, rate: Range) -> Range:
    return Range(work / rate.high, work / rate.value, work / rate.low)
