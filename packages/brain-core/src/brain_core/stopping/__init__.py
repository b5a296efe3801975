"""Where a run saves a checkpoint or stops, on all ranks after the same batch."""
