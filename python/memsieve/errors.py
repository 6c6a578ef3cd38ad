"""What memsieve raises on purpose: each says in one line where, what, and how to mend it."""


class Error(RuntimeError):
    """Base of the others."""


class ConfigError(Error, ValueError):
    """A key, value or combination in the YAML file, in the dict or in the arguments of Sieve is wrong."""


class DataError(Error, ValueError):
    """A batch or a file does not hold what it must: wrong shape, dtype or device, ids out of range, a damaged state."""


class PeerError(Error):
    """Another rank failed, which the message names, or is gone. Every rank raises at the same step: the one at fault raises
    what happened there, DataError or whatever its own callable raised."""


class NonFiniteError(Error, ArithmeticError):
    """A NaN or Inf in a loss, a signal or a gradient; the message names the sample. Raised on every rank at the same step."""
