"""Errors for people: what was expected, what was found, where, and what to do next."""


class CamexpError(Exception):
    """A mistake that the user can mend; entry points print it without a traceback and exit with 2."""
