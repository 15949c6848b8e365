"""Configs: presets of searches, recipes of trainings, and how the command reads them."""
