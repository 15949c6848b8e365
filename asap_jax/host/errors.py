"""The error type for mistakes that users can fix."""


class UserError(ValueError):
    """One paragraph: what is wrong, what was expected, how to fix it. Shown without traceback."""
