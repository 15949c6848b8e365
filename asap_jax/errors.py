"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """One paragraph: what was wrong, what was expected, what to do. Shown without traceback."""
