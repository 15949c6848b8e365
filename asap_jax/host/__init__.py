"""The machine around the mathematics: epochs, checkpoints, log, signals, memory, set-up of JAX."""
