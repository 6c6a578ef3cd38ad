"""How a command ends: what is wrong with its input is one line on stderr and an exit code."""

import sys
import warnings

from memsieve.errors import DataError


class InputError(DataError):
    """Something is missing or wrong in the input of a command; its text is one line."""


def run(name, make, arguments):
    """make(arguments) -> exit code: 0 done, 3 the input is missing or wrong."""
    def say(message, *_):
        print(f"{name}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = say
            make(arguments)
    except (DataError, OSError) as error:
        say(error)
        return 3
    return 0
