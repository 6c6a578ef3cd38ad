"""memsieve leaves memorised samples out of the loss when a diffusion model is fine-tuned.

    sieve = memsieve.Sieve("memsieve.yaml", dataset_size=len(dataset), batch_size=B)
    plan = sieve.inspect(ids, timesteps, prediction, target, start=lambda rows: ...)
    loss = plan.loss(per_sample_loss)
    loss.backward()
    sieve.step(optimizer)

The names below load torch and the compiled module at their first use, which is where ImportError says in one line what does not fit.
`memsieve.ledger` and the command line do without both.
"""
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsieve._build import VERSION as __version__
    from memsieve._core import HeldOutVisit, Look, SignalView, StepReport
    from memsieve._rules import rule, rules
    from memsieve.batches import PassOverBatches
    from memsieve.errors import ConfigError, DataError, Error, NonFiniteError, PeerError
    from memsieve.filters import filter  # noqa: A004
    from memsieve.ids import WithIds, id_of, with_ids
    from memsieve.optimizers import StepEnd
    from memsieve.sieve import Plan, Sieve

_NAMES = {
    "_core": ["HeldOutVisit", "Look", "SignalView", "StepReport"],
    "_rules": ["rule", "rules"],
    "batches": ["PassOverBatches"],
    "errors": ["ConfigError", "DataError", "Error", "NonFiniteError", "PeerError"],
    "filters": ["filter"],
    "ids": ["WithIds", "id_of", "with_ids"],
    "optimizers": ["StepEnd"],
    "sieve": ["Plan", "Sieve"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__"])


def __getattr__(name):
    if name == "__version__":
        from memsieve import _abi
        return _abi.build().VERSION
    module = _MODULE_OF.get(name, name)
    if name not in _MODULE_OF and name != "_core":
        raise AttributeError(f"module 'memsieve' has no attribute '{name}'")
    if module != "errors":  # which need neither
        from memsieve import _abi
        _abi.check()
    found = importlib.import_module(f"memsieve.{module}")
    globals()[name] = found if name == "_core" else getattr(found, name)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
