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

from stoplab_platform.errors import NotFound, TrackerUnavailable
from stoplab_platform.settings import Settings
from stoplab_platform.tracking import client
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.weights.checks import held, probe_images, translated
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
    again and compared, and deleted where it differs. Raises NotFound where the run is not in
    MLflow, TrackerUnavailable, ExportFailed.
    """
    run_id = trained.provenance.get("mlflow_run_id")
    if run_id is None:
        raise NotFound(f"{trained.provenance['run']} has no run in MLflow (yet)")
    store = client(settings.tracking_uri)

    # MLflow takes seconds to import.
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings.tracking_uri)
    images = probe_images(trained.spec.data.image_size, 3)
    with torch.no_grad():
        ours = trained.target.features(images)
    try:
        # Made here, for MLflow would put it into its default experiment.
        experiment = store.get_run(run_id).info.experiment_id
        model = store.create_logged_model(experiment, NAME, source_run_id=run_id)
        try:
            with translated("mlflow", MlflowException):
                uri = _logged(trained, run_id, model.model_id)
                loaded = mlflow.pyfunc.load_model(uri).predict(images.numpy())
            return uri, held(torch.from_numpy(loaded), ours, uri)
        except BaseException:
            store.delete_logged_model(model.model_id)
            raise
    except MlflowException as error:
        raise TrackerUnavailable(f"{settings.tracking_uri} does not take it: {error}") from error


def _logged(trained: Trained, run_id: str, model_id: str) -> str:
    """The URI of the model, its files written."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    size, width = trained.spec.data.image_size, trained.target.width
    floats = np.dtype(np.float32)
    logged = Model.log(
        artifact_path=None,
        flavor=mlflow.pytorch,
        name=NAME,
        model_id=model_id,
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
    return str(logged.model_uri)
