"""What a run is told: run options, the command line, the device, the seed, determinism."""
