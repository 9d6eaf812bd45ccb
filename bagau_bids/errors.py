"""Exceptions that a user may see, each with the exit code it leads to.

A message names the path, what was found, what was expected and what to do.
"""

EXIT_OK = 0
EXIT_SUBJECT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUILD = 70  # os.EX_SOFTWARE: the workflow could not be built or run
EXIT_MISSING = 127  # a dependency, template file or weights file is missing


class BagauError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the process returns."""

    exit_code = EXIT_BUILD


class UsageError(BagauError):
    """The request cannot be met as it was made: wrong option value, nothing to process."""

    exit_code = EXIT_USAGE


class InputImageError(BagauError):
    """An image that cannot be processed; only its own scan fails."""

    exit_code = EXIT_SUBJECT_FAILED


class ProcessingError(BagauError):
    """A step failed on an image that was accepted; only its own scan fails."""

    exit_code = EXIT_SUBJECT_FAILED


class MissingResourceError(BagauError):
    """A file the program itself needs (template, weights) is not there or is damaged."""

    exit_code = EXIT_MISSING
