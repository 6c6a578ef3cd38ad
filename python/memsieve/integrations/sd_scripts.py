"""kohya-ss/sd-scripts, by its own override points: NetworkTrainer of train_network.py and its relatives (SDXL, SD 3, FLUX). Written against
commit 48d368f; not run (docs/integrations.md). In a file beside train_network.py:

    import train_network
    from memsieve.integrations.sd_scripts import with_sieve
    train_network.NetworkTrainer = with_sieve(train_network.NetworkTrainer, ledger="ledger.h5")
"""
import random

import torch

from memsieve.ids import id_of
from memsieve.integrations.accelerate import sieve_for


def _keep_image_keys():
    """Batches keep the keys (file names) of their pictures, which sd-scripts gives only while it debugs a data set."""
    from library.train_util import BaseDataset
    if getattr(BaseDataset, "_memsieve", False):
        return
    original = BaseDataset.__getitem__

    def getitem(self, index):
        example = original(self, index)
        if self.caching_mode is None:
            place = self.buckets_indices[index]
            first = place.batch_index * place.bucket_batch_size
            example["image_keys"] = list(self.bucket_manager.buckets[place.bucket_index][first:first + place.bucket_batch_size])
        return example

    BaseDataset.__getitem__, BaseDataset._memsieve = getitem, True


def with_sieve(trainer, config="no_held_out", *, dataset_size=2 ** 22, **setup):
    """A subclass of `trainer` whose rows are sieved. Ids are hashes of the pictures' keys, which `dataset_size` makes room for; the starting
    model is the network at multiplier 0, asked on the same noise. Rows with `diff_output_preservation` are left alone."""
    _keep_image_keys()

    class Sieved(trainer):
        _sieve = None

        def get_noise_pred_and_target(self, args, accelerator, noise_scheduler, latents, batch, text_encoder_conds, unet, network, *rest,
                                      is_train=True):
            words = (args, accelerator, noise_scheduler, latents, batch, text_encoder_conds, unet, network, *rest)
            if not is_train:
                return super().get_noise_pred_and_target(*words, is_train=False)
            if self._sieve is None:
                self._sieve = sieve_for(accelerator, config, dataset_size=dataset_size, batch_size=args.train_batch_size, checkpointed=False,
                                        **setup)
                self._sieve.attach(accelerator._optimizers[0])
            before = _random_state()
            prediction, target, timesteps, weighting = super().get_noise_pred_and_target(*words, is_train=True)

            def start(rows):
                inner, after = accelerator.unwrap_model(network), _random_state()
                multiplier = inner.multiplier
                _set_random_state(before)  # the same noise and timesteps
                inner.set_multiplier(0.0)
                if hasattr(unet, "prepare_block_swap_before_forward"):
                    unet.prepare_block_swap_before_forward()
                try:
                    return super(Sieved, self).get_noise_pred_and_target(*words, is_train=False)[0][rows]
                finally:
                    inner.set_multiplier(multiplier)
                    _set_random_state(after)

            preserved = [bool(one.get("diff_output_preservation")) for one in batch.get("custom_attributes") or [{}] * len(prediction)]
            plan = self._sieve.inspect(id_of(batch["image_keys"], dataset_size), timesteps.float().clamp(0, 999), prediction, target, start=start,
                                       exempt=torch.tensor(preserved))
            return plan.weigh(prediction), target, timesteps, weighting

    return Sieved


def _random_state():
    return random.getstate(), torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state):
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    if state[2] is not None:
        torch.cuda.set_rng_state(state[2])
