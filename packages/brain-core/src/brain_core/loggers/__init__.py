"""Loggers for the figures of an epoch: files, TensorBoard, Weights & Biases, MLflow."""
