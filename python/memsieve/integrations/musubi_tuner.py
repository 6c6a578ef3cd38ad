"""kohya-ss/musubi-tuner, by its own override points: NetworkTrainer of training/trainer_base.py and what derives from it. Written against
commit 30c658c; not run (docs/integrations.md). In a file of your own:

    from musubi_tuner import zimage_train_network as trainer
    from memsieve.integrations.musubi_tuner import with_sieve
    trainer.ZImageNetworkTrainer = with_sieve(trainer.ZImageNetworkTrainer, ledger="ledger.h5")
    trainer.main()
"""
import torch

from memsieve.ids import id_of
from memsieve.integrations.accelerate import sieve_for
from memsieve.integrations.rows import of_rows


def _keep_item_keys():
    """Batches keep the keys (file names) of their items."""
    from musubi_tuner.dataset.bucket import BucketBatchManager
    if getattr(BucketBatchManager, "_memsieve", False):
        return
    original = BucketBatchManager.__getitem__

    def getitem(self, index):
        batch = original(self, index)
        bucket, number = self.bucket_batch_indices[index]
        first = number * self.batch_size
        batch["memsieve_keys"] = [item.item_key for item in self.buckets[bucket][first:first + self.batch_size]]
        return batch

    BucketBatchManager.__getitem__, BucketBatchManager._memsieve = getitem, True


def with_sieve(trainer, config="no_held_out", *, dataset_size=2 ** 22, batch_size=None, **setup):
    """A subclass of `trainer` whose rows are sieved. Ids are hashes of the items' keys, which `dataset_size` makes room for; the starting
    model is the network at multiplier 0. `batch_size`: the largest of the data sets' (None = that of the first batch)."""
    _keep_item_keys()

    class Sieved(trainer):
        _sieve = _network = None

        def on_train_start(self, args, accelerator, network, transformer, optimizer):
            super().on_train_start(args, accelerator, network, transformer, optimizer)
            self._network, self._optimizer = network, optimizer

        def process_batch(self, args, accelerator, transformer, network, batch, *rest):
            self._keys = batch.pop("memsieve_keys")
            return super().process_batch(args, accelerator, transformer, network, batch, *rest)

        def call_dit(self, args, accelerator, transformer, latents, batch, noise, noisy_model_input, timesteps, network_dtype, **more):
            def call(latents, batch, noise, noisy, timesteps, more):
                return super(Sieved, self).call_dit(args, accelerator, transformer, latents, batch, noise, noisy, timesteps, network_dtype, **more)

            output = call(latents, batch, noise, noisy_model_input, timesteps, more)
            if not torch.is_grad_enabled() or self._network is None:
                return output
            rows = len(latents)
            if self._sieve is None:
                self._sieve = sieve_for(accelerator, config, dataset_size=dataset_size, batch_size=batch_size or rows, num_timesteps=1001,
                                        checkpointed=False, **setup)
                self._sieve.attach(self._optimizer)

            def start(k):
                inner = accelerator.unwrap_model(self._network)
                multiplier = inner.multiplier
                inner.set_multiplier(0.0)
                try:
                    return call(*(of_rows(one, k, rows) for one in (latents, batch, noise, noisy_model_input, timesteps, more))).pred
                finally:
                    inner.set_multiplier(multiplier)

            plan = self._sieve.inspect(id_of(self._keys, dataset_size), timesteps.float().clamp(0, 1000), output.pred, output.target, start=start)
            output.pred = plan.weigh(output.pred)
            return output

    return Sieved
