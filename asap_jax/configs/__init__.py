"""Configs: search presets, training recipes, and the parsing of command-line flags."""
