"""Searching a cell: one step (Algorithm 1), its programs, the epochs."""
