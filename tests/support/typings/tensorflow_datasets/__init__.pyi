"""Untyped: tfds declares most of what a builder has as optional or as its base class."""

from typing import Any

def __getattr__(name: str) -> Any: ...
