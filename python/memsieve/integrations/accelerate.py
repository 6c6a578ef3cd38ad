"""accelerate.

    sieve = sieve_for(accelerator, "memsieve.yaml", dataset_size=len(dataset), batch_size=B)
    ...
    with accelerator.accumulate(unet):
        plan = sieve.inspect(batch["sample_id"].cpu(), timesteps, model_pred, target, start=...)
        accelerator.backward(plan.loss(per_sample_loss))
        sieve.step(optimizer)           # in place of optimizer.step(); also in micro-batches that only accumulate
        lr_scheduler.step()

What accelerator.prepare is given beside model and optimiser it hands back as it is, a sieve too.
"""
import torch

from memsieve.sieve import Sieve


def sieve_for(accelerator, config="default", *, checkpointed=True, **setup):
    """A Sieve for this accelerator: its ranks, device and accumulation; the loss is divided by accelerator.backward alone. Its state goes
    into accelerator.save_state and comes back with load_state (`checkpointed`), which is called before the first step.

    COLLECTIVE. `setup`: what Sieve takes; raises what Sieve raises.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    given = {"device": accelerator.device, "micro_batches": accelerator.gradient_accumulation_steps, "divide_loss": False,
             "group": torch.distributed.group.WORLD if distributed else None, **setup}
    sieve = Sieve(config, **given)
    if checkpointed:
        accelerator.register_for_checkpointing(sieve)
    return sieve
