"""Cell search: one step (Algorithm 1), its programs, the epochs."""
