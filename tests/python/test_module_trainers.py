"""The patches of trainers that no package registry has: against stand-ins that call the patched methods in the way the trainers do. The
trainers themselves were not run (docs/integrations.md)."""
import sys
import types

import module_toy as toy
import pytest
import torch
from module_toy import memsieve

RULE = {**toy.PUBLISHED, "filters": {"start_gap": {}}, "threshold": {"kind": "fixed", "drop": 0.0}}
B = 8


class Network(torch.nn.Module):
    """A LoRA of kohya's kind: a weight that a multiplier turns off."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(toy.DIM, toy.DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 12)
        self.multiplier = self.is_active = 1.0

    def set_multiplier(self, multiplier):
        self.multiplier = multiplier

    def forward(self, x):
        return x * 0.5 + (x @ self.weight if self.is_active else 0) * self.multiplier


def expected(network, noisy, target):
    """The gradient of the mean over the rows that the starting model predicts no worse than the trained one, and how many those are."""
    errors = [(prediction - target).square().mean(1) for prediction in (network(noisy), noisy * 0.5)]
    kept = (errors[1].float().log() - errors[0].float().log()) <= 0
    gradient, = torch.autograd.grad((errors[0] * kept).sum() / kept.sum(), network.weight)
    return gradient, int(kept.sum())


def check(network, stepped, noisy, target):
    gradient, kept = expected(network, noisy, target)
    assert 0 < kept < B, "the rule keeps or drops all: the test shows nothing"
    torch.testing.assert_close(stepped, gradient, rtol=1e-5, atol=1e-8)
    assert network.multiplier == 1.0 and network.is_active == 1.0


class Watched(torch.optim.SGD):
    """Keeps the gradient that it was stepped with."""

    def __init__(self, parameters):
        super().__init__(parameters, 0.0)

    @torch.no_grad()
    def step(self, closure=None):
        self.gradient = self.param_groups[0]["params"][0].grad.clone()


@pytest.fixture
def accelerator():
    from accelerate import Accelerator
    return Accelerator(cpu=True)


def noised(seed=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, toy.DIM, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_sd_scripts(accelerator, monkeypatch):
    library = types.ModuleType("library")
    train_util = types.ModuleType("library.train_util")

    class BaseDataset:
        caching_mode = None
        buckets_indices = [types.SimpleNamespace(bucket_index=0, batch_index=1, bucket_batch_size=B)]
        bucket_manager = types.SimpleNamespace(buckets=[[f"{n}.png" for n in range(2 * B)]])

        def __getitem__(self, index):
            return {"custom_attributes": [{}] * B}

    train_util.BaseDataset = BaseDataset
    monkeypatch.setitem(sys.modules, "library", library)
    monkeypatch.setitem(sys.modules, "library.train_util", train_util)
    from memsieve.integrations.sd_scripts import with_sieve

    class NetworkTrainer:
        def get_noise_pred_and_target(self, args, accelerator, noise_scheduler, latents, batch, conds, unet, network, weight_dtype, train_unet,
                                      is_train=True):
            noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (B,))
            with torch.set_grad_enabled(is_train):
                return network(latents + noise), noise, timesteps, None

    network = Network()
    optimizer = accelerator.prepare(Watched(network.parameters()))
    trainer = with_sieve(NetworkTrainer, RULE)()
    batch = BaseDataset()[0]
    assert batch["image_keys"] == [f"{n}.png" for n in range(B, 2 * B)]
    latents, _ = noised()
    torch.manual_seed(2)
    noise = torch.randn_like(latents)
    torch.manual_seed(2)
    arguments = types.SimpleNamespace(train_batch_size=B)
    made = trainer.get_noise_pred_and_target(arguments, accelerator, None, latents, batch, [], None, network, None, True, is_train=True)
    after = torch.rand(1)
    torch.manual_seed(2)
    torch.randn_like(latents), torch.randint(0, 1000, (B,))
    assert torch.equal(after, torch.rand(1)), "the second look must not move the random numbers"
    (made[0] - made[1]).square().mean(1).mean().backward()
    optimizer.step()
    check(network, optimizer.optimizer.gradient, latents + noise, noise)


def test_musubi_tuner(accelerator, monkeypatch):
    package, dataset, bucket = (types.ModuleType(name) for name in ("musubi_tuner", "musubi_tuner.dataset", "musubi_tuner.dataset.bucket"))

    class BucketBatchManager:
        batch_size, bucket_batch_indices = B, [(64, 0)]
        buckets = {64: [types.SimpleNamespace(item_key=f"{n}.png") for n in range(B)]}

        def __getitem__(self, index):
            return {"text": torch.zeros(B, 1), "captions": ["x"] * B}

    bucket.BucketBatchManager = BucketBatchManager
    for module in (package, dataset, bucket):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    from memsieve.integrations.musubi_tuner import with_sieve

    class NetworkTrainer:
        def on_train_start(self, *_):
            pass

        def process_batch(self, args, accelerator, transformer, network, batch, latents, noise, *_):
            assert "memsieve_keys" not in batch
            timesteps = torch.full((B,), 1000.5)
            output = self.call_dit(args, accelerator, transformer, latents, batch, noise, latents + noise, timesteps, None)
            return (output.pred - output.target).square().mean()

        def call_dit(self, args, accelerator, transformer, latents, batch, noise, noisy, timesteps, network_dtype, **_):
            assert len(latents) == len(noisy) == len(timesteps) == len(batch["text"]) == len(batch["captions"])
            return types.SimpleNamespace(pred=transformer(noisy), target=noise)

    network = Network()
    optimizer = accelerator.prepare(Watched(network.parameters()))
    trainer = with_sieve(NetworkTrainer, RULE)()
    trainer.on_train_start(None, accelerator, network, network, optimizer)
    latents, noise = noised()
    trainer.process_batch(None, accelerator, network, network, BucketBatchManager()[0], latents, noise).backward()
    optimizer.step()
    check(network, optimizer.optimizer.gradient, latents + noise, noise)


def test_simpletuner(accelerator):
    import contextlib

    from memsieve.integrations.simpletuner import sieve_trainer
    network = Network()
    optimizer = accelerator.prepare(Watched(network.parameters()))
    latents, noise = noised()

    @contextlib.contextmanager
    def disabled():
        network.set_multiplier(0.0)
        yield
        network.set_multiplier(1.0)

    model = types.SimpleNamespace(get_prediction_target=lambda batch: noise,
                                  loss=lambda batch, output, apply_conditioning_mask=True: (
                                      output["model_prediction"] - noise).square().mean(1).mean())
    trainer = types.SimpleNamespace(model=model, accelerator=accelerator, optimizer=optimizer, config=types.SimpleNamespace(train_batch_size=B),
                                    _low_rank_adapter_disabled=disabled, model_predict=lambda batch: {"model_prediction": network(latents + noise)})
    sieve_trainer(trainer, RULE)
    batch = {"filepaths": [f"{n}.png" for n in range(B)], "timesteps": torch.full((B,), 500)}
    model.loss(batch, trainer.model_predict(batch)).backward()
    optimizer.step()
    check(network, optimizer.optimizer.gradient, latents + noise, noise)


@pytest.mark.parametrize("batch_size", [B, B + 3])
def test_onetrainer(batch_size):
    import contextlib

    from memsieve.integrations.onetrainer import sieve_setup
    network = Network()
    latents, noise = noised()
    model = types.SimpleNamespace(optimizer=Watched(network.parameters()))
    config = types.SimpleNamespace(batch_size=batch_size, train_device="cpu", gradient_accumulation_steps=1)

    class Setup:
        def predict(self, model, batch, config, train_progress):
            return {"predicted": network(latents + noise), "target": noise, "timestep": torch.full((B,), 500), "loss_type": "target"}

        @contextlib.contextmanager
        def prior_model(self, model, config):
            network.set_multiplier(0.0)
            yield
            network.set_multiplier(1.0)

        def _diffusion_losses(self, batch, data, config):
            return (data["predicted"] - data["target"]).square().mean(1)

        _flow_matching_losses = _diffusion_losses

    setup = Setup()
    sieve_setup(setup, model, config, RULE)
    batch = {"image_path": [f"{n}.png" for n in range(B)], "concept_type": ["STANDARD"] * B}
    data = setup.predict(model, batch, config, None)
    setup._diffusion_losses(batch=batch, data=data, config=config).mean().backward()
    model.optimizer.step()
    check(network, model.optimizer.gradient, latents + noise, noise)


def test_ai_toolkit():
    from memsieve.integrations.ai_toolkit import sieve_class
    latents, noise = noised()

    class SDTrainer:
        device_torch = torch.device("cpu")
        train_config = types.SimpleNamespace(batch_size=B, gradient_accumulation=1)
        sd = types.SimpleNamespace(is_flow_matching=True)

        def __init__(self):
            self.network = Network()
            self.optimizer = Watched(self.network.parameters())

        def predict_noise(self, noisy_latents, timesteps, is_primary_pred=False):
            return self.network(noisy_latents)

        def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0):
            return (noise_pred - (noise - batch.latents)).square().mean(1).mean()

    sieve_class(SDTrainer, RULE)
    trainer = SDTrainer()
    batch = types.SimpleNamespace(latents=latents, file_items=[types.SimpleNamespace(path=f"{n}.png") for n in range(B)],
                                  get_is_reg_list=lambda: [False] * B)
    timesteps = torch.full((B,), 500)
    prediction = trainer.predict_noise(latents + noise, timesteps, is_primary_pred=True)
    trainer.calculate_loss(noise_pred=prediction, noise=noise, noisy_latents=latents + noise, timesteps=timesteps, batch=batch).backward()
    trainer.optimizer.step()
    check(trainer.network, trainer.optimizer.gradient, latents + noise, noise - latents)


def test_rows_of_what_a_model_is_called_with():
    from memsieve.integrations.rows import of_rows
    rows = torch.tensor([2, 0])
    tensor, other = torch.arange(8).view(4, 2), torch.arange(3)
    made = of_rows({"a": tensor, "b": [other, "word"], "captions": ["w", "x", "y", "z"], "pair": (tensor, tensor), "none": None}, rows, 4)
    assert torch.equal(made["a"], tensor[[2, 0]]) and made["b"][0] is other and made["captions"] == ["y", "w"] and made["none"] is None
    assert all(torch.equal(one, tensor[[2, 0]]) for one in made["pair"])
    assert memsieve.id_of("a", 5) == memsieve.id_of("a", 5)
