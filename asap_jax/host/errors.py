"""The error type for mistakes that users can fix, and what such errors say."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """One paragraph: what is wrong, what was expected, how to fix it. Shown without traceback."""


@contextlib.contextmanager
def of(what: str) -> Iterator[None]:
    """Turns a ValueError or OSError into a UserError about `what`: a config key, a file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {error}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or '' if no known word is close."""
    close = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
