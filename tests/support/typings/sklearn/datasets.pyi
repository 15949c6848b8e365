"""What the package uses of scikit-learn, whose function may return a tuple instead."""

from typing import Any

def load_digits() -> Any: ...
