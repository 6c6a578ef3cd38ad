"""How a program of tools/ ends: what is wrong with its input is one line on stderr and an exit code."""

import sys


class InputError(Exception):
    """Something is missing or wrong in the input; its text is one line."""


def run(name, make, arguments):
    """make(arguments) -> exit code: 0 done, 2 a package is missing, 3 the input is missing or wrong."""
    try:
        make(arguments)
    except (InputError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 3
    except ImportError as error:
        print(f"{name}: {error}: pip install h5py jinja2 matplotlib numpy pillow pyyaml", file=sys.stderr)
        return 2
    return 0
