"""What a checkpoint holds of a run besides modules and optimizers, and how a run resumes."""
