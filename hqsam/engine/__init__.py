"""Training and evaluation: configuration, distribution, the loop, its state and its logs."""
