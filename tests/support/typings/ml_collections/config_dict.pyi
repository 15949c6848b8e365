from typing import Any

class FieldReference:
    def __init__(self, default: Any, field_type: type | None = None) -> None: ...
