"""ai-toolkit (ostris/ai-toolkit), by SDTrainer's methods. Written against commit 27a03a9; not run (docs/integrations.md). For models that
predict noise or a flow with one picture's target in `noise - latents`:

    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer
    from memsieve.integrations.ai_toolkit import sieve_class
    sieve_class(SDTrainer, ledger="ledger.h5")      # before run.py builds its job
"""
import torch

from memsieve.ids import id_of
from memsieve.sieve import Sieve


def sieve_class(trainer, config="no_held_out", *, dataset_size=2 ** 22, **setup):
    """Has the rows of each `trainer` made from now on sieved. Ids are hashes of the files' paths, which `dataset_size` makes room for; the
    starting model is the one with its network off. Regularisation pictures are left alone."""
    predict_noise, calculate_loss = trainer.predict_noise, trainer.calculate_loss

    def remembered(self, *words, is_primary_pred=False, **more):
        if is_primary_pred:
            self._memsieve_call = words, more
        return predict_noise(self, *words, is_primary_pred=is_primary_pred, **more)

    def sieved(self, noise_pred, noise, noisy_latents, timesteps, batch, *rest, **more):
        if getattr(self, "_memsieve", None) is None:
            self._memsieve = Sieve(config, **{"dataset_size": dataset_size, "batch_size": self.train_config.batch_size, "num_timesteps": 1001,
                                              "micro_batches": max(1, self.train_config.gradient_accumulation), "device": self.device_torch,
                                              "divide_loss": False, **setup})
            self._memsieve.attach(self.optimizer)

        def start(rows):
            words, named = self._memsieve_call
            active, self.network.is_active = self.network.is_active, False
            try:
                return predict_noise(self, *words, **named)[rows]
            finally:
                self.network.is_active = active

        target = noise - batch.latents.to(noise) if self.sd.is_flow_matching else noise
        plan = self._memsieve.inspect(id_of([item.path for item in batch.file_items], dataset_size), timesteps.float().clamp(0, 1000), noise_pred,
                                      target, start=start, exempt=torch.tensor(batch.get_is_reg_list()))
        return calculate_loss(self, plan.weigh(noise_pred), noise, noisy_latents, timesteps, batch, *rest, **more)

    trainer.predict_noise, trainer.calculate_loss = remembered, sieved
    return trainer
