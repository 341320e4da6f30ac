"""One training loop for every task, with its options, checkpoints, progress and run folder."""
