"""The one exception that a user is meant to read."""


class UserError(Exception):
    """What was wrong, where, and what mends it, in one sentence; the command line prints it and exits with 2."""
