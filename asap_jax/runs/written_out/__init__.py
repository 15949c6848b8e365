"""Trained networks written out as plain source code of Flax and PyTorch."""
