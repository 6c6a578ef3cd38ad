"""torchtitan's FLUX trainer, by its forward_backward_step; versions: docs/integrations.md. In a file of your own:

    from torchtitan.models.flux.train import FluxTrainer      # 0.3: torchtitan.models.flux.trainer
    from torchtitan.train import main
    from memsieve.integrations.torchtitan import with_sieve
    main(with_sieve(FluxTrainer, "wen2024", ledger="ledger.h5"))

Its data sets have no index: ids are hashes of the prompts, so pictures with one caption are judged as one sample.
"""
import copy

import torch

from memsieve.errors import ConfigError
from memsieve.ids import id_of
from memsieve.sieve import Sieve


def _tokens(batch, encoder):
    """[B, L]: those of encoder "t5" or "clip", under either version's name."""
    return batch.get(f"{encoder}_tokens", batch.get(encoder)).flatten(1)


def with_sieve(trainer, config="no_held_out", *, dataset_size=2 ** 22, **setup):
    """A subclass of `trainer` whose rows are sieved; data parallelism alone. The starting model, where the rule asks for it, is a frozen copy
    of the weights at the first step, which a sharded model (FSDP) cannot have: take a rule that reads `null` there (`wen2024`)."""

    class Sieved(trainer):
        _sieve = _frozen = _empty = None

        def forward_backward_step(self, *, input_dict, labels, **more):
            if self._sieve is None:
                self._make_sieve(len(labels))
            model, loss_fn, words = self.model_parts[0], self.loss_fn, {}
            ids = id_of(list(input_dict["prompt"]), dataset_size)
            empty = [(_tokens(input_dict, name).cpu() == tokens).all(1) for name, tokens in self._empty_tokens().items()]
            has_caption = ~torch.stack(empty).all(0) if empty else None

            def called(module, positional, named):
                if torch.is_grad_enabled():
                    words.update(named)

            def sieved(prediction, target):
                def rows_of(k):
                    return {name: word[k] for name, word in words.items()}

                def null(k):
                    t5, clip = (encodings.expand(len(k), *encodings.shape[1:]) for encodings in self._empty)
                    return model(**{**rows_of(k), "txt": t5, "y": clip})

                asked = self._sieve.counterfactuals
                plan = self._sieve.inspect(ids, (words["timesteps"].float() * 1000).clamp(0, 999), prediction, target, has_caption=has_caption,
                                           null=null if "null" in asked else None,
                                           start=(lambda k: self._frozen(**rows_of(k))) if "start" in asked else None)
                return loss_fn(plan.weigh(prediction), target)

            hook = model.register_forward_pre_hook(called, with_kwargs=True, prepend=True)  # before FSDP rounds the times to bfloat16
            self.loss_fn = sieved
            try:
                return super().forward_backward_step(input_dict=input_dict, labels=labels, **more)
            finally:
                self.loss_fn = loss_fn
                hook.remove()

        def _empty_tokens(self):
            dataset = getattr(self.dataloader, "dataset", None)
            found = {name: getattr(dataset, f"_{name}_empty_token", None) for name in ("t5", "clip")}
            return {name: torch.as_tensor(tokens).flatten() for name, tokens in found.items() if tokens is not None}

        def _make_sieve(self, rows):
            dims = self.parallel_dims
            if dims.tp_enabled or dims.cp_enabled or dims.pp_enabled or len(self.optimizers.optimizers) != 1:
                raise ConfigError("memsieve.integrations.torchtitan: only data parallelism is known; turn tensor, context and pipeline "
                                  "parallelism off")
            self._sieve = Sieve(config, **{"dataset_size": dataset_size, "batch_size": rows, "device": self.device, "divide_loss": False, **setup})
            self._sieve.attach(self.optimizers.optimizers[0])
            if "start" in self._sieve.counterfactuals:
                if dims.dp_shard_enabled:
                    raise ConfigError("memsieve.integrations.torchtitan: the rule asks for the starting model, of which a sharded model can "
                                      "hold no copy; take one that reads `null`, such as wen2024")
                self._frozen = copy.deepcopy(self.model_parts[0]).requires_grad_(False)
            if "null" in self._sieve.counterfactuals:
                tokens = self._empty_tokens()
                if len(tokens) != 2:
                    raise ConfigError("memsieve.integrations.torchtitan: the rule asks for the empty caption, but the data set has no tokens of "
                                      "it (_t5_empty_token, _clip_empty_token)")
                encoders = {"t5": self.t5_encoder, "clip": self.clip_encoder}
                with torch.no_grad():
                    self._empty = [encoders[name](tokens[name][None].to(self.device, torch.int)).to(self._dtype) for name in encoders]

    return Sieved
