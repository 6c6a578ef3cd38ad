"""memsieve.integrations.denoising_diffusion_pytorch in that package's own Trainer, on a tiny UNet and random pictures."""
import copy
import sys
from pathlib import Path

import module_toy as toy
import numpy as np
import pytest
import torch
from conftest import torchrun
from memsieve import ledger
from PIL import Image

ddpm = pytest.importorskip("denoising_diffusion_pytorch", reason="denoising-diffusion-pytorch is not installed: it needs torchvision, einops "
                           "and ema-pytorch (docs/integrations.md)")

PICTURES, SIDE, BATCH, MICRO, STEPS, SEED = 100, 16, 8, 2, 3, 13

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_workers(monkeypatch):
    for place in ("multiprocessing", "denoising_diffusion_pytorch.denoising_diffusion_pytorch"):
        monkeypatch.setattr(f"{place}.cpu_count", lambda: 1)


def better_than_at_the_start(level):
    """A rule that drops the rows whose error has fallen below that of the starting model, times exp(-level)."""
    return {**toy.PUBLISHED, "filters": {"start_gap": {}}, "threshold": {"kind": "fixed", "drop": level}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(PICTURES):
        colours = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / f"{number:03}.png")
    return folder


class Watched(ddpm.Unet):
    """Keeps what each pass that is trained on was given, and the weights that it had."""

    def __init__(self, **more):
        super().__init__(dim=8, dim_mults=(1, 2), flash_attn=False, **more)
        self.passes = []

    def forward(self, x, time, x_self_cond=None):
        if torch.is_grad_enabled():
            self.passes.append((x.detach(), time, x_self_cond, {name: p.detach().clone() for name, p in self.named_parameters()}))
        return super().forward(x, time, x_self_cond)


def trained(pictures, folder, config, objective="pred_v", self_condition=False, **more):
    """A trainer after its training, its sieve, and the gradients of its steps, flattened."""
    torch.manual_seed(3)
    diffusion = ddpm.GaussianDiffusion(Watched(self_condition=self_condition), image_size=SIDE, objective=objective, min_snr_loss_weight=True)
    trainer = ddpm.Trainer(diffusion, pictures, train_batch_size=BATCH, gradient_accumulate_every=MICRO, train_num_steps=STEPS, train_lr=3e-3,
                           augment_horizontal_flip=False, calculate_fid=False, max_grad_norm=1e9, results_folder=str(folder / "results"))
    sieve = None
    if config is not None:
        from memsieve.integrations.denoising_diffusion_pytorch import sieve_trainer
        sieve = sieve_trainer(trainer, config, ledger=folder / "ledger.h5", **more)
    gradients = []
    trainer.opt.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in diffusion.model.parameters() if p.grad is not None])))
    torch.manual_seed(SEED + trainer.accelerator.process_index)  # each rank draws noise and timesteps of its own
    trainer.train()
    if sieve is not None:
        sieve.flush()
    return trainer, diffusion, gradients


def expected(diffusion, passes, visits, originals):
    """The gradient of the mean loss over the rows that were kept, from the pictures that the ledger names: that of each row by its timestep."""
    model = copy.deepcopy(diffusion.model)
    model.load_state_dict(passes[0][3], strict=False)
    told, total = {float(visit["timestep"]): visit for visit in visits}, 0.0
    assert len(told) == len(visits) == sum(len(t) for _, t, _, _ in passes), "two rows of a step have one timestep: take another seed"
    for x, t, condition, _ in passes:
        rows = [told[float(one)] for one in t]
        weights = torch.tensor([float(row["weight"]) for row in rows])
        x0, at = originals[[int(row["sample"]) for row in rows]] * 2 - 1, t.view(-1, 1, 1, 1)
        signal, spread = diffusion.sqrt_alphas_cumprod[at], diffusion.sqrt_one_minus_alphas_cumprod[at]
        noise = (x - signal * x0) / spread
        target = {"pred_noise": noise, "pred_x0": x0, "pred_v": signal * noise - spread * x0}[diffusion.objective]
        total = total + ((model(x, t, condition) - target).square().mean((1, 2, 3)) * diffusion.loss_weight[t] * weights).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total / float(visits["weight"].sum()), parameters, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def check(trainer, diffusion, gradients, passes, path):
    """`passes`: of each step, those of all ranks."""
    originals = torch.stack([trainer.ds[index] for index in range(PICTURES)])
    visits = ledger.visits(path)
    assert len(visits) == BATCH * sum(map(len, passes)) and len(passes) == len(gradients) == STEPS
    dropped = 0
    for step, gradient in enumerate(gradients):
        rows = visits[visits["step"] == step]
        dropped += int((rows["weight"] == 0).sum())
        assert (rows["weight"] == 1).any()
        wanted = expected(diffusion, passes[step], rows, originals)
        torch.testing.assert_close(gradient, wanted, rtol=2e-3, atol=2e-5 * wanted.abs().max().item())
    assert 0 < dropped < len(visits), "the rule keeps or drops all: the test shows nothing"


@pytest.mark.parametrize("objective, self_condition, level", [("pred_v", False, 0.1), ("pred_noise", True, 0.05), ("pred_x0", False, 0.3)])
def test_gradients_are_those_of_the_rows_that_were_kept(pictures, tmp_path, objective, self_condition, level):
    trainer, diffusion, gradients = trained(pictures, tmp_path, better_than_at_the_start(level), objective, self_condition)
    made = diffusion.model.passes
    check(trainer, diffusion, gradients, [made[MICRO * step:MICRO * (step + 1)] for step in range(STEPS)], tmp_path / "ledger.h5")


def test_two_ranks(pictures, tmp_path):
    """The gradient is that of the rows of both."""
    result = torchrun(2, sys.executable, __file__, pictures, tmp_path, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0 and result.stdout.count("as it must be") == 2, result.stdout + result.stderr


def test_a_rule_that_drops_nothing_is_the_plain_trainer(pictures, tmp_path):
    """Bit for bit, with the same noise and pictures in the same order."""
    (tmp_path / "plain").mkdir()
    plain, sieved = trained(pictures, tmp_path / "plain", None), trained(pictures, tmp_path, better_than_at_the_start(1e9))
    assert len(plain[2]) == len(sieved[2]) == STEPS
    for one, two in zip(plain[2], sieved[2]):
        assert torch.equal(one, two)


def test_drawing_and_losses_without_gradient_are_left_alone(pictures, tmp_path):
    trainer, diffusion, _ = trained(pictures, tmp_path, better_than_at_the_start(0.1))
    rows = len(ledger.visits(tmp_path / "ledger.h5"))
    with torch.no_grad():
        assert diffusion(torch.rand(2, 3, SIDE, SIDE)).isfinite()
    assert len(ledger.visits(tmp_path / "ledger.h5")) == rows


def one_of_two_ranks(pictures, folder):
    trainer, diffusion, gradients = trained(pictures, folder, better_than_at_the_start(0.1))
    everyone = [None] * 2
    torch.distributed.all_gather_object(everyone, diffusion.model.passes)
    check(trainer, diffusion, gradients, [sum((one[MICRO * step:MICRO * (step + 1)] for one in everyone), []) for step in range(STEPS)],
          folder / "ledger.h5")
    print("as it must be")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_of_two_ranks(*map(Path, sys.argv[1:]))
