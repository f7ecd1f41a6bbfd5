"""What can go wrong between this machine and a cluster, in the words of what to do about it."""


class SubmitError(Exception):
    """One line: what was found, what was expected, and what to do."""


class Unreachable(SubmitError):
    """The service does not answer just now; asking again may help."""
