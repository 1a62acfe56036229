"""A trained encoder as ONNX: images [b, 3, s, s] to `features` [b, d] and `patches` [b, n, d]."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stoplab_platform.errors import SettingsError
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.weights.checks import held, probe_images, translated
from stoplab_trainers.weights.trained import Trained

INPUT, OUTPUTS = "images", ("features", "patches")
MOST_IN_ONE_FILE = 1 << 30  # bytes; protobuf ends at 2 GiB, then weights go to a file beside


class _Outputs(nn.Module):
    """What the file computes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.vit = encoder.vit

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        patches = cast(Tensor, self.vit.forward_features(images))
        return patches.mean(dim=1), patches


def write_onnx(trained: Trained, path: Path) -> float:
    """Write the encoder, for any batch size; the largest difference in onnxruntime, measured.

    Raises SettingsError where the packages are missing, ExportFailed.
    """
    onnxruntime = _packages()
    with translated("onnx"):
        return _written(trained, path, onnxruntime)


def _written(trained: Trained, path: Path, onnxruntime: Any) -> float:
    program = _exported(trained)
    program.model.metadata_props.update(trained.provenance)
    size = sum(value.nbytes for value in trained.encoder.values())
    program.save(path, external_data=size > MOST_IN_ONE_FILE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return max(_difference(trained, session, batch) for batch in (1, 3))


def _packages() -> Any:
    """Onnxruntime; a lab that exports no ONNX does without."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"export to ONNX needs the package {error.name}: pip install 'stoplab[export]'"
        ) from error
    return onnxruntime


def _exported(trained: Trained) -> Any:
    batch = torch.export.Dim("batch")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it speaks of opsets and optional packages
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Outputs(trained.target).eval(),
                (probe_images(trained.spec.data.image_size),),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: batch}},
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)


def _difference(trained: Trained, session: Any, batch: int) -> float:
    images = probe_images(trained.spec.data.image_size, batch)
    features, patches = map(torch.from_numpy, session.run(list(OUTPUTS), {INPUT: images.numpy()}))
    with torch.no_grad():
        tokens = trained.target(images)
        pooled = trained.target.features(images)
    return max(held(features, pooled, "onnxruntime"), held(patches, tokens, "onnxruntime"))
