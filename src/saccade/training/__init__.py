"""Training: the loop, the optimiser, the schedule, checkpoints and evaluation."""
