from collections.abc import Sequence
from typing import Any

def DEFINE_config_file(
    name: str, default: str | None = None, help_string: str = "", sys_argv: Sequence[str] = ()
) -> Any: ...
def get_config_filename(config_flag: Any) -> str: ...
