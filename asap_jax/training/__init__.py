"""Training: losses, optimizers, one step, the epochs; parts of it are shared with the search."""
