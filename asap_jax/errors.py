"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Says in a paragraph what was wrong, what was expected and what to do; shown without traceback."""
