"""A trained encoder as an MLflow model of its own run, with signature.

It is saved as torch's exported program (`pt2`), so loading needs torch and MLflow alone, neither
stoplab nor timm, and unpickles nothing.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stoplab_platform.errors import NotFound
from stoplab_platform.settings import Settings
from stoplab_platform.tracking import client
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.weights.checks import held, probe_images
from stoplab_trainers.weights.trained import Trained

NAME = "encoder"


class _Features(nn.Module):
    """What the model computes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.vit = encoder.vit

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return cast(Tensor, self.vit.forward_features(images).mean(dim=1))


def log_mlflow(trained: Trained, settings: Settings) -> tuple[str, float]:
    """Log the encoder to the run's own run in MLflow; the model's URI, and a measured difference.

    Images are float32 [-1, 3, s, s], normalised; features float32 [-1, d]. The model is loaded
    again and compared. Raises NotFound where the run is not in MLflow, TrackerUnavailable,
    ExportFailed.
    """
    run_id = trained.provenance.get("mlflow_run_id")
    if run_id is None:
        raise NotFound(f"{trained.provenance['run']} has no run in MLflow (yet)")
    client(settings.tracking_uri)  # makes sure that it answers

    # MLflow takes seconds to import.
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, width = trained.spec.data.image_size, trained.target.width
    floats = np.dtype(np.float32)
    mlflow.set_tracking_uri(settings.tracking_uri)
    logged = Model.log(
        artifact_path=None,
        flavor=mlflow.pytorch,
        name=NAME,
        run_id=run_id,
        step=int(trained.provenance["step"]),
        metadata=trained.provenance,
        pytorch_model=_Features(trained.target).eval(),
        serialization_format="pt2",
        input_example=probe_images(size).numpy(),  # two: a batch of one would be for good
        signature=ModelSignature(
            inputs=Schema([TensorSpec(floats, (-1, 3, size, size))]),
            outputs=Schema([TensorSpec(floats, (-1, width))]),
        ),
        pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "mlflow", "numpy")],
    )
    images = probe_images(size, 3)
    loaded = mlflow.pyfunc.load_model(logged.model_uri).predict(images.numpy())
    with torch.no_grad():
        ours = trained.target.features(images)
    return logged.model_uri, held(torch.from_numpy(loaded), ours, logged.model_uri)
