"""OneTrainer (Nerogar/OneTrainer), by its loss mixin. Written against commit 23df383; not run (docs/integrations.md).

    from memsieve.integrations.onetrainer import sieve_setup
    sieve_setup(trainer.model_setup, trainer.model, trainer.config, ledger="ledger.h5")    # a GenericTrainer, after start()
"""
import torch

from memsieve.ids import id_of
from memsieve.sieve import Sieve


def sieve_setup(setup, model, config, rule="no_held_out", *, dataset_size=2 ** 22, **words):
    """Has the rows of a model setup sieved. Ids are hashes of the pictures' paths, which `dataset_size` makes room for; the starting model is
    `prior_model()`. Rows of prior-prediction concepts are left alone. Not with a fused back pass, whose optimiser has no step."""
    sieve = Sieve(rule, **{"dataset_size": dataset_size, "batch_size": config.batch_size, "device": config.train_device,
                           "micro_batches": config.gradient_accumulation_steps, "divide_loss": False, **words})
    sieve.attach(model.optimizer)
    predict, last = setup.predict, {}

    def remembered(model, batch, config, train_progress, **more):
        if torch.is_grad_enabled():
            last.update(batch=batch, progress=train_progress, more=more)
        return predict(model, batch, config, train_progress, **more)

    def sieved(losses_of):
        def losses(batch, data, *rest, **more):
            values = losses_of(batch, data, *rest, **more)
            if not torch.is_grad_enabled() or data["loss_type"] != "target":
                return values

            def start(rows):
                with setup.prior_model(model, config):  # predict() draws the same noise for the same step
                    return predict(model, last["batch"], config, last["progress"], **last["more"])["predicted"][rows]

            prior = torch.tensor(["PRIOR_PREDICTION" in str(kind) for kind in batch["concept_type"]])
            plan = sieve.inspect(id_of([str(path) for path in batch["image_path"]], dataset_size), data["timestep"].float().clamp(0, 999),
                                 data["predicted"], data["target"], start=start, exempt=prior)
            if plan.weights is None:
                return values
            # The trainer takes the mean of the rows there are, the sieve divides by those of a full batch.
            return values * (plan.weights * (len(plan.weights) / sieve.batch_size)).to(values.dtype)
        return losses

    setup.predict = remembered
    for name in ("_diffusion_losses", "_flow_matching_losses"):
        setattr(setup, name, sieved(getattr(setup, name)))
    return sieve
