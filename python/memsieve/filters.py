"""Filters written in Python."""
import inspect

from memsieve.errors import ConfigError


class PythonFilter:
    """What `filter` makes of a function; hand it to `Sieve(filters=[...])`. Still callable."""

    def __init__(self, function, name, signals, timestep_min):
        self.function, self.name, self.signals, self.timestep_min = function, name, tuple(signals), float(timestep_min)
        self.__doc__ = function.__doc__
        options = list(inspect.signature(function).parameters.values())[1:]
        if no_default := [p.name for p in options if p.default is inspect.Parameter.empty]:
            raise ConfigError(f"filter {name}: option {no_default[0]} has no default; the first argument is the view, every other one "
                              "an option of the YAML file, with a default")
        self.options = {p.name: p.default for p in options}

    def __call__(self, view, **options):
        return self.function(view, **options)

    def entry(self):
        """As the bindings take it."""
        doc = (self.function.__doc__ or "written in Python").strip().splitlines()[0]
        return self.name, doc, self.options, list(self.signals), self.timestep_min, self.function


def filter(name=None, *, signals=("prediction_error",), timestep_min=0.0):  # noqa: A001
    """Makes a filter of a function `score(view, **options)`: a pure function from signals to one score a row, higher = more
    memorised.

        @memsieve.filter(signals=["prediction_error"])
        def low_error(view, power=1.0):
            return -view.prediction_error ** power

        memsieve.Sieve({"filters": {"low_error": {"power": 2}}, ...}, filters=[low_error], ...)

    `view`: a SignalView, all tensors [B] float32 on the training device. Returns [B] float32 there, NaN = no opinion on this row.
    `signals`: names of the signals it reads (docs/data_flow.md), `timestep_min`: rows below are not scored. Options are the keyword
    arguments, by the type of their default: bool, int, float or str.

    SLOW PATH: it runs with the GIL once a micro-batch; it must not wait for the device (`.item()`, `.cpu()`). One in C++ is a
    plug-in (docs/write_a_filter.md). What it raises is raised by `Sieve.step` on this rank; the others raise PeerError.
    """
    if callable(name):
        return PythonFilter(name, name.__name__, signals, timestep_min)
    return lambda function: PythonFilter(function, name or function.__name__, signals, timestep_min)
