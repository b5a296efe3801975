"""One directory of checkpoints on disk: files, checksums, manifests, locks and commits."""
