"""RunSpec: everything that decides one pretraining run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from stoplab_platform.errors import Problem
from stoplab_platform.masks import infeasible
from stoplab_platform.plugins import versions
from stoplab_platform.specs.base import Path, Spec, canonical_digest
from stoplab_platform.specs.data import DataSpec, SecretRef
from stoplab_platform.specs.evals import KnnEval, LinearEval, Protocol, deeper_than, repeated
from stoplab_platform.specs.kinds import PluginSpec
from stoplab_platform.specs.limits import JobLimits
from stoplab_platform.specs.masking import MaskingSpec, MultiblockMasking
from stoplab_platform.specs.model import ModelSpec
from stoplab_platform.specs.objective import IjepaObjective, ObjectiveSpec
from stoplab_platform.specs.optim import OptimSpec
from stoplab_platform.specs.positions import PositionsSpec, StochasticPositions

Name = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[\w.@-][\w.@ -]*$")]
FieldName = Annotated[str, Field(max_length=200)]
"""A dotted path into a RunSpec."""
WEIGHTLESS = (
    "kind", "spec_version", "name", "tracking", "checkpoint", "evals", "compute", "limits",
    "collapse",
)  # fmt: skip
WRITABLE = ("file", "s3", "gs", "gcs", "az", "abfs")
"""Schemes of URLs that checkpoints may be written to."""
SIGNS = "* ? [ ] { } # and white space"
PATTERN = re.compile(r"[*?\[\]{}#\s\x00-\x1f\x7f]")
MOST_PATCHES = 128
"""Patches along one side of an image: attention over more is out of reach."""


def _kind_defaults_to(kind: str) -> BeforeValidator:
    """Lets an override of one field stand without repeating the object's default kind."""

    def add(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(add)


def _named(value: Any) -> Any:
    """Lets an objective without options be written as its kind alone."""
    return {"kind": value} if isinstance(value, str) else value


class ComputeSpec(Spec):
    """Where and how fast; of these, only precision and threads can change a weight."""

    workers: int = Field(default=1, ge=1, le=4096)
    """Training processes. Default 1."""
    min_workers: int | None = Field(default=None, ge=1, le=4096)
    """Fewest workers that a run goes on with while nodes are away: then it takes the largest number
    that divides `optim.batch_size` and finds room, and grows again up to `workers`. The batch stays
    the same. Null: always `workers`. Default null."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """GPUs of each worker: 0 trains on the CPU. Default 0."""
    cpus_per_worker: float = Field(default=1, gt=0, le=4096)
    """CPUs reserved for each worker. Default 1."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Torch threads of each worker; null: cpus_per_worker, rounded down. Default null."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on GPUs, fp32 on CPUs. Default auto."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the transformer blocks, and CUDA graphs of a lone GPU's passes; `auto`: on
    GPUs only. Default auto."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the model: `ddp`: each has all of it. `fsdp`: the student's weights,
    gradients and moments lie in shards (FSDP2), for models that fit no other way. Checkpoints and
    results are the same. Default ddp."""
    accumulate: int = Field(default=1, ge=1, le=2**20)
    """Parts that a worker's images of a step are computed in, one after another: less memory for
    activations, the same step up to rounding. Default 1."""
    activation_checkpointing: bool = False
    """Compute the blocks' activations again on the way back instead of keeping them: a tenth
    to a fifth more operations, the same gradients. Default false."""
    max_failures: int = Field(default=3, ge=0, le=1_000_000)
    """Restarts after failures of one kind, as lost workers or nodes; 0: none at all. Default 3."""
    hang_timeout_s: float | None = Field(default=900, ge=1, le=1_000_000)
    """Seconds without a step after which a worker counts as hung and starts anew from the last
    checkpoint: at least 20 of the run's usual steps, and five times as long for the first one;
    evaluations do not count. Null: it is waited for without end. Default 900."""

    @property
    def resolved_threads(self) -> int:
        """Torch threads of each worker."""
        return self.threads or max(1, int(self.cpus_per_worker))

    def counts(self, batch: int) -> tuple[int, ...]:
        """The numbers of workers that may train a global batch of so many images, ascending."""
        fewest = self.min_workers or self.workers
        return tuple(count for count in range(fewest, self.workers + 1) if batch % count == 0)

    def parts(self, batch: int, count: int) -> int:
        """Parts that each of ``count`` workers computes its images of a step in.

        Fewer workers than planned have more images each: no part is larger than was planned, so
        that none needs more memory.
        """
        if self.min_workers is None:
            return self.accumulate
        own, most = batch // count, batch // (self.workers * self.accumulate)
        return next(n for n in range(1, own + 1) if own % n == 0 and own // n <= most)


class CheckpointSpec(Spec):
    """When to save, how many to keep, and where."""

    every_epochs: int | None = Field(default=1, ge=1, le=1_000_000)
    """Save each so many epochs. Default 1."""
    every_steps: int | None = Field(default=None, ge=1, le=2**53)
    """Save each so many steps as well. Default null."""
    keep: int = Field(default=3, ge=1, le=1_000_000)
    """Newest checkpoints kept. Default 3."""
    url: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Where they lie, each run below in a folder of its own: a prefix in an object store (`s3://`,
    `gs://`, `az://`, …) or an absolute path. Default null: the run's folder."""
    storage: SecretRef | None = None
    """Credentials and options for `url` (fsspec), as `secret://NAME` of a secret that is a JSON
    object; null: those of `data.storage`. Default null."""

    def checks(self) -> Iterator[Problem]:
        """A place that can be written to, and one alone."""
        if self.url is None:
            if self.storage is not None:
                yield Problem(("storage",), "is for checkpoint.url, which is not given")
            return
        scheme, sign, rest = self.url.partition("://")
        if PATTERN.search(self.url):
            yield Problem(("url",), f"{self.url!r}: give one place, without any of {SIGNS}")
        elif sign and scheme not in WRITABLE:
            known = ", ".join(WRITABLE)
            yield Problem(("url",), f"{self.url!r}: URLs of {known} can be written, no others")
        elif not (path := rest if sign else self.url).strip("/"):
            yield Problem(("url",), f"{self.url!r}: give a bucket or a folder")
        elif scheme == "file" or not sign:
            if not path.startswith("/"):  # each process would take another folder for it
                yield Problem(("url",), f"{self.url!r}: give an absolute path, or a URL")
        elif any(part in ("", ".", "..") for part in path.rstrip("/").split("/")):
            # Stores take such a name to the letter in some calls, and not in others.
            yield Problem(("url",), f"{self.url!r}: give a bucket and names, without //, . and ..")


class TrackingSpec(Spec):
    """Where the run appears."""

    experiment: str = Field(default="stop", min_length=1, max_length=200)
    """MLflow experiment. Default stop."""
    tags: dict[str, str] = {}
    """Further tags of the MLflow run. Default none."""
    log_every_steps: int = Field(default=10, ge=1, le=2**53)
    """Steps between logged metrics. Default 10."""


class RunSpec(Spec):
    """One pretraining run."""

    kind: Literal["pretrain"]
    """Names this kind of spec."""
    spec_version: Literal[1] = 1
    """Version of this format. Default 1."""
    name: Name
    """A name for people; letters, digits, `.`, `_`, `-`, `@` and spaces."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Root of every random stream. Default 0."""
    objective: Annotated[
        ObjectiveSpec,
        _kind_defaults_to("ijepa"),
        BeforeValidator(_named, json_schema_input_type=str | ObjectiveSpec),
    ] = IjepaObjective(kind="ijepa")
    """What is learned; a text stands for the kind of that name. Default ijepa: features of the
    EMA encoder."""
    positions: Annotated[PositionsSpec, _kind_defaults_to("stochastic")] = StochasticPositions(
        kind="stochastic"
    )
    """Positions of the masked tokens. Default stochastic, noise_std 0.25."""
    model: ModelSpec = ModelSpec()
    """Encoder and predictor."""
    masking: Annotated[MaskingSpec, _kind_defaults_to("multiblock")] = MultiblockMasking(
        kind="multiblock"
    )
    """Which patches are context and which are targets. Default multiblock."""
    data: DataSpec
    """Images."""
    optim: OptimSpec = OptimSpec()
    """Optimiser and schedules."""
    compute: ComputeSpec = ComputeSpec()
    """Workers, threads, precision."""
    evals: tuple[Protocol, ...] = (KnnEval(kind="knn"), LinearEval(kind="linear"))
    """Evaluation protocols. Default kNN and linear probe at the end."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When to save."""
    tracking: TrackingSpec = TrackingSpec()
    """Where the run appears."""
    collapse: Literal["warn", "stop", "off"] = "warn"
    """When the features collapse (less than a tenth is left of the most spread or rank that they
    had, untrained or since): `warn` in the log and on the run, `stop` it as failed, or `off`. A
    target that stands still or leaps and masks that starve patches are warned of. Default warn."""
    limits: JobLimits = JobLimits()
    """Where the job ends unfinished; its last checkpoint is kept. In a study: the study's own."""

    @model_serializer(mode="wrap")
    def _in_short(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An objective of which nothing but the kind is said is written as that text."""
        data: dict[str, Any] = written(self)
        objective = self.objective
        if "objective" in data and objective == type(objective)(kind=objective.kind):
            data["objective"] = objective.kind
        return data

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.data.image_size // self.model.sizes().patch_size

    def metrics(self) -> tuple[str, ...]:
        """Names its evaluations measure, without the split."""
        return tuple(name for protocol in self.evals for name in protocol.metrics())

    def checks(self) -> Iterator[Problem]:
        """The patch grid fits, the batch divides, the masks can be drawn, the parts exist."""
        yield from self._compute_problems()
        if self.evals and self.data.eval_data() is None:
            yield Problem(
                ("data", "eval"),
                "evals need labelled shards; give data.eval, or evals: []",
                (("evals",), ("data", "train")),
            )
        for path, message in repeated(self.evals):
            yield Problem(("evals", *path), message)
        for path, message in deeper_than(self.evals, self.model.sizes().depth):
            yield Problem(("evals", *path), message, (("model",),))
        patch = self.model.sizes().patch_size
        sets_patch = ("model", "patch_size" if self.model.patch_size else "encoder")
        if self.data.image_size % patch or self.data.image_size < 2 * patch:
            yield Problem(
                ("data", "image_size"),
                f"{self.data.image_size} must be a multiple of the patch size ({patch}), "
                "two patches or more",
                (sets_patch,),
            )
        if self.grid > MOST_PATCHES:
            yield Problem(
                ("data", "image_size"),
                f"{self.data.image_size} makes {self.grid}x{self.grid} patches of {patch} pixels; "
                f"at most {MOST_PATCHES}x{MOST_PATCHES} can be trained: give smaller images or "
                "larger patches",
                (sets_patch,),
            )
        if not 2 <= self.grid <= MOST_PATCHES:
            return
        yield from self._objective_problems(sets_patch)
        decided_by = (("masking",), ("data", "image_size"), sets_patch)
        for path, message in infeasible(self.masking, self.grid):
            yield Problem(("masking", *path), message, decided_by)

    def _compute_problems(self) -> Iterator[Problem]:
        batch, compute = self.optim.batch_size, self.compute
        if batch % compute.workers:
            yield Problem(
                ("optim", "batch_size"),
                f"{batch} must divide by compute.workers ({compute.workers})",
                (("compute", "workers"),),
            )
        elif (batch // compute.workers) % compute.accumulate:
            yield Problem(
                ("compute", "accumulate"),
                f"{compute.accumulate} must divide the {batch // compute.workers} images of each "
                "worker (optim.batch_size / compute.workers)",
                (("optim", "batch_size"), ("compute", "workers")),
            )
        yield from self._elastic_problems()
        if compute.strategy == "fsdp" and not self.objective.averages:
            yield Problem(
                ("compute", "strategy"),
                f"'fsdp' goes with objectives that keep a moving average of the encoder, and "
                f"{self.objective.kind!r} keeps none; give ddp",
                (("objective",),),
            )

    def _elastic_problems(self) -> Iterator[Problem]:
        batch, fewest, most = self.optim.batch_size, self.compute.min_workers, self.compute.workers
        at = ("compute", "min_workers")
        if fewest is None:
            return
        if fewest >= most or len(self.compute.counts(batch)) < 2:
            fits = [n for n in range(1, min(fewest, most)) if batch % n == 0]
            yield Problem(
                at,
                f"{fewest}: no number of workers from there up to, but without, compute.workers "
                f"({most}) divides optim.batch_size ({batch}); give "
                + (f"{fits[-1]}, or null" if fits else "null")
                + " for a fixed number",
                (("compute", "workers"), ("optim", "batch_size")),
            )
        if getattr(self.masking, "sampler", None) == "official":
            yield Problem(
                at,
                f"{fewest}: masks of the official sampler depend on the number of workers, which "
                "must then be fixed; give null, or masking.sampler: fixed",
                (("masking", "sampler"),),
            )

    def _objective_problems(self, sets_patch: Path) -> Iterator[Problem]:
        objective = self.objective
        if objective.kind == "mae" and self.masking.kind == "multiblock":
            yield Problem(
                ("masking",),
                "'multiblock' does not go with objective 'mae', which predicts all masked patches "
                "as one block; give {kind: random, ratio: 0.75}",
                (("objective",),),
            )
        if isinstance(objective, IjepaObjective) and objective.target_pool and self.grid % 2:
            yield Problem(
                ("objective", "target_pool"),
                f"{objective.target_pool!r} halves the grid, and {self.grid}x{self.grid} patches "
                "cannot be halved; give an even number of patches a side, or null",
                (("data", "image_size"), sets_patch),
            )

    def plugins(self) -> dict[str, str]:
        """The plug-ins that it uses, each with package and version."""
        parts = {"positions": self.positions, "masking": self.masking, "objective": self.objective}
        return versions({p: one.kind for p, one in parts.items() if isinstance(one, PluginSpec)})

    def run_digest(self, facts: Mapping[str, Any]) -> str:
        """Identity of the weights: sha256 (hex) of the part of the spec that decides them.

        ``facts`` are what only the machine knows: resolved precision and threads, the data's
        fingerprint, versions of plan and sampler.
        """
        return canonical_digest({"spec": self.decisive(), "facts": dict(facts)})

    def decisive(self) -> dict[str, Any]:
        """The part that decides the weights, as JSON types, without defaulted fields."""
        found = {k: v for k, v in self.plain(defaults=False).items() if k not in WEIGHTLESS}
        for weightless in ("eval", "loader_threads", "max_bad_samples", "storage"):
            found.get("data", {}).pop(weightless, None)
        return found


def limit_problems(base: RunSpec, at: Path, changed: Iterable[str]) -> Iterator[Problem]:
    """Of a study's base, and of fields that it changes at ``at``: limits are the study's own."""
    text = "the runs of a study have no limits of their own; set the study's `limits`"
    if base.limits != JobLimits():
        yield Problem(("base", "limits"), text)
    for path in changed:
        if path.partition(".")[0] == "limits":
            yield Problem((*at, path), text)
