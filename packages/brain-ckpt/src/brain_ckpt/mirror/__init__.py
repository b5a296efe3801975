"""Checkpoints in an object store (S3, GCS, Azure): copied there during training, and back."""
