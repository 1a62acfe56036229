"""Images: where they lie, how they are split, cropped and shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec

EMBEDDED = ("digits",)
EMBEDDED_IMAGES = {"digits": 1257, "digits/train": 1257, "digits/test": 540}
"""Images of embedded sets and their splits."""
Url = Annotated[str, Field(max_length=2048, pattern=r"^[^\x00-\x1f\x7f]*$")]
Urls = Url | tuple[Url, ...]


SecretRef = Annotated[str, Field(pattern=r"^secret://[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class EvalDataSpec(Spec):
    """Labelled images for the probes."""

    train: Urls
    """Shards to fit probes on: a path or URL, with `{000..009}` or `*`, or a list of them."""
    val: Urls | None = None
    """Shards to select on; null splits them off `train` by a fixed hash of the key."""
    test: Urls
    """Shards to report on, once, at the end of a run."""
    storage: SecretRef | None = None
    """Credentials and options for remote shards (fsspec), as `secret://NAME` of a secret that
    is a JSON object; null: those of `data.storage`. Default null."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of `train` that is the validation split where `val` is null (fraction).
    Default 0.1."""


class ShuffleSpec(Spec):
    """How far samples move from where they lie."""

    window_shards: int | None = Field(default=None, ge=1, le=1_000_000)
    """Shuffle inside windows of this many shards, which stream in order; null shuffles the
    whole set. Default null."""


class DataSpec(Spec):
    """What the run trains on and is judged on."""

    train: Urls
    """WebDataset shards: a path or URL, with `{000..009}` or `*`, a list of them, or the name
    of an embedded set (`digits`). Labels are not read."""
    eval: EvalDataSpec | None = None
    """Labelled shards for the evaluations; null: an embedded set's own splits, or none."""
    image_size: int = Field(default=224, ge=4, le=4096)
    """Side of the square crop (pixels). Default 224: I-JEPA configs."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the crop's share of the image's area (fraction). Default 0.3 to 1: I-JEPA."""
    hflip: bool = False
    """Flip half of the images left to right. Default false: I-JEPA; the StoP configs flip."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Probability of a Gaussian blur (sigma 0.1 to 2 pixels). Default 0; StoP configs 0.5."""
    grayscale: float = Field(default=0.0, ge=0, le=1)
    """Probability of dropping the colours. Default 0; StoP configs 0.2."""
    decode: Literal["full", "scaled"] = "full"
    """How much of a JPEG is decoded: `full`, all its pixels, as in the published code; `scaled`, a
    half, quarter or eighth of its side where the crop keeps `image_size` pixels or more. That is
    faster for small crops of large images, and gives slightly other pixels. Default full."""
    shuffle: ShuffleSpec = ShuffleSpec()
    """How samples are shuffled."""
    storage: SecretRef | None = None
    """Credentials and options for remote shards (fsspec), as `secret://NAME` of a secret that
    is a JSON object. Default null: what the machine itself has."""
    max_bad_samples: int = Field(default=0, ge=0, le=2**53)
    """Samples of `train` that may be unreadable in the whole run (count, each once): they are named
    in the log and replaced by others of their shard; one more fails the run. Default 0."""
    loader_threads: int = Field(default=2, ge=0, le=64)
    """Decoding threads per worker, which change no result; 0: the training thread decodes.
    Default 2."""

    def checks(self) -> Iterator[Problem]:
        """The crop's range must rise inside (0, 1]."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            yield Problem(("crop_scale",), f"[{low}, {high}] must rise inside (0, 1]")

    def eval_data(self) -> EvalDataSpec | None:
        """The labelled splits, an embedded set's own where none are given."""
        if self.eval is None and isinstance(self.train, str) and self.train in EMBEDDED:
            return EvalDataSpec(
                train=f"{self.train}/train", test=f"{self.train}/test", val_fraction=0.2
            )
        if self.eval is not None and self.eval.storage is None:
            return self.eval.model_copy(update={"storage": self.storage})
        return self.eval
