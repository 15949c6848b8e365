"""Runs: from config and data to results, and everything done with a finished run."""
