"""Loggers for the figures of an epoch: a text file, TensorBoard, Weights & Biases."""
