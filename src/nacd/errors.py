"""The exception that a user's mistake raises; the command line prints it without a traceback."""


class UserError(Exception):
    """A wrong input, in one message: what came, what was expected, which flag or edit mends it."""
