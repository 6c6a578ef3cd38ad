"""lucidrains' denoising-diffusion-pytorch, by its Trainer's and GaussianDiffusion's attributes; version: docs/integrations.md.

    trainer = Trainer(diffusion, "pictures", ...)
    sieve_trainer(trainer, ledger="ledger.h5")      # before trainer.train(), after trainer.load()
    trainer.train()

Ids are the numbers of the pictures in `trainer.ds.paths`.
"""
import contextlib
import copy
import multiprocessing

import torch
from torch.nn.functional import mse_loss
from torch.overrides import TorchFunctionMode

from memsieve.ids import WithIds
from memsieve.integrations.accelerate import sieve_for


class _AtTheLoss(TorchFunctionMode):
    """Calls `weigh(prediction, target)` for the prediction that the first mse_loss inside is given."""

    def __init__(self, weigh):
        super().__init__()
        self.weigh = weigh

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is mse_loss and self.weigh is not None:
            weigh, self.weigh = self.weigh, None
            args = (weigh(args[0], args[1]), *args[1:])
        return function(*args, **(kwargs or {}))


def _with_ids(trainer, seen):
    """The trainer's batches again, from a loader that also gives ids, which go to `seen`."""
    loader = trainer.accelerator.prepare(torch.utils.data.DataLoader(
        WithIds(trainer.ds), batch_size=trainer.batch_size, shuffle=True, pin_memory=torch.cuda.is_available(),
        num_workers=multiprocessing.cpu_count()))  # as its own has
    while True:
        for pictures, ids in loader:
            seen["ids"] = ids.cpu()
            yield pictures


def sieve_trainer(trainer, config="no_held_out", **setup):
    """Has the rows of a Trainer sieved; returns the Sieve. The starting model, where the rule asks for it, is a frozen copy of the model as
    it is now: training that begins from random weights wants a rule without it. `setup`: what Sieve takes. COLLECTIVE."""
    accelerator, diffusion = trainer.accelerator, trainer.accelerator.unwrap_model(trainer.model)
    rows = trainer.batch_size // accelerator.num_processes if accelerator.split_batches else trainer.batch_size
    sieve = sieve_for(accelerator, config, **{"dataset_size": len(trainer.ds), "batch_size": rows, "checkpointed": False,
                                              "num_timesteps": diffusion.num_timesteps,
                                              "micro_batches": trainer.gradient_accumulate_every, **setup})
    sieve.attach(trainer.opt)
    seen, original = {}, diffusion.p_losses
    frozen = copy.deepcopy(diffusion.model).eval().requires_grad_(False) if "start" in sieve.counterfactuals else None
    trainer.dl = _with_ids(trainer, seen)

    def weigh(prediction, target):
        words, t = seen.pop("call"), seen.pop("t")

        def start(rows):
            return frozen(*(word[rows] if isinstance(word, torch.Tensor) else word for word in words))

        plan = sieve.inspect(seen.pop("ids"), t, prediction, target, start=start if frozen is not None else None)
        return plan.weigh(prediction)

    def p_losses(x_start, t, *rest, **more):
        if not torch.is_grad_enabled():
            return original(x_start, t, *rest, **more)
        seen["t"] = t
        with contextlib.ExitStack() as inside:
            def called(module, words, output):
                if torch.is_grad_enabled():  # not the pass that only makes the self-condition
                    seen["call"] = words
                    inside.enter_context(_AtTheLoss(weigh))  # from here on, so that the model's own operations are not slowed down

            hook = diffusion.model.register_forward_hook(called)
            inside.callback(hook.remove)
            return original(x_start, t, *rest, **more)

    diffusion.p_losses = p_losses
    return sieve
