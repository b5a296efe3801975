"""The directory of an experiment, its log and its environment."""
