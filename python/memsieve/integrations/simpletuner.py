"""SimpleTuner (bghira/SimpleTuner), by its trainer's and model's methods. Written against commit bc8e6ab; not run (docs/integrations.md).

    from memsieve.integrations.simpletuner import sieve_trainer
    sieve_trainer(trainer, ledger="ledger.h5")      # a Trainer, before trainer.train()
"""
import torch

from memsieve.ids import id_of
from memsieve.integrations.accelerate import sieve_for


def sieve_trainer(trainer, config="no_held_out", *, dataset_size=2 ** 22, **setup):
    """Has the rows of `trainer` sieved. Ids are hashes of the files' paths, which `dataset_size` makes room for; the starting model is the
    trained component without its adapter. Batches whose target is the parent model's are left alone."""
    model, original = trainer.model, trainer.model.loss
    made = []

    def loss(prepared_batch, model_output, *rest, **more):
        if not torch.is_grad_enabled():
            return original(prepared_batch, model_output, *rest, **more)
        if not made:
            made.append(sieve_for(trainer.accelerator, config, dataset_size=dataset_size, batch_size=trainer.config.train_batch_size,
                                  num_timesteps=1001, checkpointed=False, **setup))
            made[0].attach(trainer.optimizer)
        prediction = model_output["model_prediction"]

        def start(rows):
            with trainer._low_rank_adapter_disabled():
                return trainer.model_predict(prepared_batch)["model_prediction"][rows]

        exempt = torch.full((len(prediction),), bool(prepared_batch.get("is_regularisation_data")))
        plan = made[0].inspect(id_of([str(path) for path in prepared_batch["filepaths"]], dataset_size),
                               prepared_batch["timesteps"].float().clamp(0, 1000), prediction, model.get_prediction_target(prepared_batch),
                               start=start, exempt=exempt)
        return original(prepared_batch, {**model_output, "model_prediction": plan.weigh(prediction)}, *rest, **more)

    model.loss = loss
