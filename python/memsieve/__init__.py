"""memsieve leaves memorised samples out of the loss when a diffusion model is fine-tuned.

    sieve = memsieve.Sieve("memsieve.yaml", dataset_size=len(dataset), batch_size=B)
    plan = sieve.inspect(ids, timesteps, prediction, target, start=lambda rows: ...)
    loss = plan.loss(per_sample_loss)
    loss.backward()
    sieve.step(optimizer)
"""
from memsieve import _abi

_abi.check()

from memsieve import _core  # noqa: E402
from memsieve._build import VERSION as __version__  # noqa: E402
from memsieve.batches import PassOverBatches  # noqa: E402
from memsieve.errors import ConfigError, DataError, Error, NonFiniteError, PeerError  # noqa: E402
from memsieve.filters import filter  # noqa: E402, A004
from memsieve.ids import WithIds, id_of, with_ids  # noqa: E402
from memsieve.optimizers import StepEnd  # noqa: E402
from memsieve._rules import rule, rules  # noqa: E402
from memsieve.sieve import Plan, Sieve  # noqa: E402

HeldOutVisit, Look, SignalView, StepReport = _core.HeldOutVisit, _core.Look, _core.SignalView, _core.StepReport

__all__ = ["ConfigError", "DataError", "Error", "HeldOutVisit", "Look", "NonFiniteError", "PassOverBatches", "PeerError", "Plan",
           "Sieve", "SignalView", "StepEnd", "StepReport", "WithIds", "__version__", "filter", "id_of", "rule", "rules", "with_ids"]
