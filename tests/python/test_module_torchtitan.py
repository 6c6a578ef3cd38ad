"""memsieve.integrations.torchtitan in torchtitan's own FLUX step: its trainer's train_step, model, autoencoder, loss and optimisers at a tiny
size; text encoders and tokens are made up."""
import contextlib
import copy
import types

import module_toy as toy
import numpy as np
import pytest
import torch
from memsieve import ConfigError, ledger

pytest.importorskip("torchtitan", reason="torchtitan is not installed (docs/integrations.md)")
flux = pytest.importorskip("torchtitan.models.flux.train", reason="this torchtitan is not 0.2, or does not fit torch", exc_type=ImportError)

B, SIDE, LENGTH, STEPS, SAMPLES = 6, 32, 5, 4, 9
START = {**toy.PUBLISHED, "filters": {"start_gap": {}}, "threshold": {"kind": "fixed", "drop": 0.02}}
NULL = {**toy.PUBLISHED, "threshold": {"kind": "fixed", "drop": 1.0}}

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def group(monkeypatch):
    """One process, on the CPU."""
    from torchtitan.distributed import parallel_dims
    monkeypatch.setattr(parallel_dims, "device_type", "cpu")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Encoder(torch.nn.Module):
    def __init__(self, width, pooled):
        super().__init__()
        self.table, self.pooled = torch.nn.Embedding(50, width), pooled

    def forward(self, tokens):
        states = self.table(tokens)
        return states.mean(1) if self.pooled else states


def trainer_of(config, folder, shard=False, **dims):
    from torchtitan.components.loss import mse_loss
    from torchtitan.components.optimizer import OptimizersContainer
    from torchtitan.distributed import ParallelDims
    from torchtitan.models.flux.model.args import FluxModelArgs
    from torchtitan.models.flux.model.autoencoder import AutoEncoder, AutoEncoderParams
    from torchtitan.models.flux.model.model import FluxModel

    from memsieve.integrations.torchtitan import with_sieve
    torch.manual_seed(0)
    arguments = FluxModelArgs(in_channels=64, out_channels=64, vec_in_dim=8, context_in_dim=8, hidden_size=32, num_heads=2, depth=1,
                              depth_single_blocks=1, axes_dim=(4, 6, 6))
    model = FluxModel(arguments)
    model.init_weights()
    for parameter in model.parameters():  # as trained ones, which answer with the caption in mind
        torch.nn.init.normal_(parameter, std=0.15)
    if shard:
        torch.distributed.fsdp.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)),
                                           mp_policy=torch.distributed.fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    cls = flux.FluxTrainer if config is None else with_sieve(flux.FluxTrainer, config, dataset_size=SAMPLES * 1000, ledger=folder / "ledger.h5")
    trainer = cls.__new__(cls)
    trainer.device, trainer._dtype = torch.device("cpu"), torch.float32
    trainer.parallel_dims = ParallelDims(**{"dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1, "pp": 1, "ep": 1, "etp": 1, "world_size": 1, **dims})
    trainer.autoencoder = AutoEncoder(AutoEncoderParams(resolution=SIDE, ch=32, num_res_blocks=1)).requires_grad_(False)
    trainer.t5_encoder, trainer.clip_encoder = (Encoder(8, pooled).requires_grad_(False) for pooled in (False, True))
    trainer.model_parts, trainer.loss_fn = [model], mse_loss
    trainer.optimizers = OptimizersContainer([model], torch.optim.AdamW, {"lr": 5e-3})
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer.optimizers.optimizers[0], lambda _: 1.0)
    trainer.lr_schedulers = types.SimpleNamespace(schedulers=[schedule], step=schedule.step)
    trainer.train_context, trainer.maybe_enable_amp = contextlib.nullcontext, contextlib.nullcontext()
    trainer.gradient_accumulation_steps, trainer.step = 1, 1
    trainer.job_config = types.SimpleNamespace(training=types.SimpleNamespace(max_norm=1e9))
    trainer.checkpointer = types.SimpleNamespace(maybe_wait_for_staging=lambda: None)
    trainer.metrics_processor = types.SimpleNamespace(should_log=lambda step: False)
    trainer.dataloader = types.SimpleNamespace(dataset=types.SimpleNamespace(_t5_empty_token=[0] * LENGTH, _clip_empty_token=[0] * LENGTH))
    return trainer


def batches():
    """Prompts, tokens and pictures of SAMPLES samples; in each batch one row whose prompt was dropped."""
    draws = torch.Generator().manual_seed(5)
    pictures, tokens = torch.rand(SAMPLES, 3, SIDE, SIDE, generator=draws) * 2 - 1, torch.randint(1, 50, (SAMPLES, LENGTH), generator=draws)
    for _ in range(STEPS):
        which = torch.randint(SAMPLES, (B,), generator=draws)
        chosen = tokens[which].clone()
        chosen[1] = 0
        yield {"prompt": [f"prompt {i}" for i in which], "t5_tokens": chosen, "clip_tokens": chosen.clone()}, pictures[which]


def trained(config, folder):
    """The trainer, and of each step the weights before it, what the model was given, the target, and the gradient of the update."""
    trainer, seen = trainer_of(config, folder), []
    model, loss_fn = trainer.model_parts[0], trainer.loss_fn

    def watched_loss(prediction, target):
        seen[-1]["target"] = target.detach()
        return loss_fn(prediction, target)

    def called(module, positional, named):
        if torch.is_grad_enabled():
            seen.append({"words": named, "weights": copy.deepcopy(model.state_dict())})

    trainer.loss_fn = watched_loss
    model.register_forward_pre_hook(called, with_kwargs=True)
    data = batches()
    for number in range(STEPS):
        trainer.train_step(data)
        if number == 0:  # after the sieve's own, which divides
            trainer.optimizers.optimizers[0].register_step_pre_hook(
                lambda *_: seen[-1].update(gradient=torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    return trainer, seen


@pytest.mark.parametrize("config, column", [(START, "raw_start_gap"), (NULL, "raw_magnitude")])
def test_gradients_are_those_of_the_rows_that_were_kept(tmp_path, config, column):
    trainer, seen = trained(config, tmp_path)
    trainer._sieve.flush()
    visits = ledger.visits(tmp_path / "ledger.h5")
    assert len(visits) == STEPS * B == np.isfinite(visits[column]).sum() + (visits["captioned"] == 0).sum()
    assert (visits["captioned"].reshape(STEPS, B) == [1, 0, 1, 1, 1, 1]).all()
    model, dropped = copy.deepcopy(trainer.model_parts[0]), 0
    model._forward_pre_hooks.clear()
    for step in range(1, STEPS):
        weights = torch.from_numpy(visits["weight"][visits["step"] == step].copy())
        dropped += int((weights == 0).sum())
        model.load_state_dict(seen[step]["weights"])
        errors = (model(**seen[step]["words"]) - seen[step]["target"]).square().mean((1, 2))
        parameters = list(model.parameters())
        wanted = torch.autograd.grad((errors * weights).sum() / weights.sum(), parameters, allow_unused=True)
        wanted = torch.cat([gradient.flatten() for gradient in wanted if gradient is not None])
        torch.testing.assert_close(seen[step]["gradient"], wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
    assert 0 < dropped < (STEPS - 1) * B, "the rule keeps or drops all: the test shows nothing"


def test_a_rule_that_drops_nothing_is_the_plain_trainer(tmp_path):
    plain, sieved = trained(None, tmp_path)[0], trained({**START, "threshold": {"kind": "fixed", "drop": 1e9}}, tmp_path)[0]
    for one, two in zip(plain.model_parts[0].parameters(), sieved.model_parts[0].parameters()):
        assert torch.equal(one, two)


def test_times_are_taken_before_they_are_rounded(tmp_path, monkeypatch):
    """FSDP with bfloat16 rounds what the model is given: a time just below 1 to 1."""
    rand, times = torch.rand, torch.linspace(0.9, 0.9999, B)
    monkeypatch.setattr(torch, "rand", lambda *size, **more: times.clone() if size == ((B,),) else rand(*size, **more))
    trainer = trainer_of(NULL, tmp_path, shard=True)
    trainer._dtype = torch.bfloat16
    for encoder in (trainer.t5_encoder, trainer.clip_encoder, trainer.autoencoder):
        encoder.to(torch.bfloat16)
    trainer.train_step(batches())
    trainer._sieve.flush()
    visits = ledger.visits(tmp_path / "ledger.h5")
    np.testing.assert_allclose(visits["timestep"], (times.numpy() * 1000).clip(0, 999), atol=1e-3)
    assert np.isfinite(visits["raw_magnitude"]).sum() == B - 1


@pytest.mark.parametrize("config, dims, words", [(NULL, {"tp": 2, "world_size": 2}, "only data parallelism"),
                                                 (START, {"dp_shard": 2, "world_size": 2}, "sharded model")])
def test_what_cannot_be_done_is_said(tmp_path, config, dims, words):
    trainer = trainer_of(config, tmp_path, **dims)
    with pytest.raises(ConfigError, match=words):
        trainer.train_step(batches())
