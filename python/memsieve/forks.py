"""Processes that are forked from one that has a sieve: the C++ part of it has threads and groups, which they lack."""
import ctypes
import os
import weakref

from memsieve.errors import Error

_living = weakref.WeakSet()


class _Forked:
    """Stands in for the C++ sieve in a process that was forked from its own, where its threads and groups are missing."""

    def __init__(self, owner):
        self._owner = owner

    def __getattr__(self, name):
        raise Error(f"this sieve belongs to process {self._owner}, but this is {os.getpid()}, forked from it; use it in the process "
                    "that made it (not in a DataLoader's workers), or make one in each")


def _after_fork():
    for sieve in list(_living):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(sieve._core))  # its end would wait for a thread that is not here
        sieve._core = _Forked(sieve._owner)


os.register_at_fork(after_in_child=_after_fork)


def watch(sieve):
    """From now on a process that is forked from this one is told so when it uses `sieve`, an object with `_core`."""
    sieve._owner = os.getpid()
    _living.add(sieve)
