"""Weights in and out: the authors' checkpoints, timm, safetensors, ONNX, MLflow models."""
