"""The training loop's parts: one optimizer step, one pass over the data, its mean and its bar."""
