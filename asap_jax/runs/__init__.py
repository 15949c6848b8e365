"""A run from config and data to results, and what is done with a finished one."""
