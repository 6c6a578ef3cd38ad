"""The demo's fine-tuning, written in Python: diffusers' UNet, and the rule `default` with all that it asks of a loop, which is held-out
pictures, flagged samples that are passed over and looked at again, and a frozen copy of the starting model. Several ranks train and
judge as one does.

    python fine_tune.py configs/demo.yaml RUN
    torchrun --nproc_per_node 2 fine_tune.py configs/demo.yaml RUN

Of the configuration it reads `data`, `model.pretrained`, `sieve`, the noise (NOISE) and the few numbers that `make` and `main` name. RUN is the
folder that the ledger goes to. Everything stays on the CPU, as in the demo; for a GPU move the model and the rows there.
"""
import copy
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DConditionModel

import memsieve
from memsieve import ledger

distributed = torch.distributed
# Keys of the trainer's configuration, and its defaults.
NOISE = {"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": False}


class Pictures:
    """A data set (docs/data_format.md) in memory: `latents` [N, C, H, W] as the model sees them, `text` [N, L, D], `no_text` [L, D]."""

    def __init__(self, path):
        with h5py.File(path) as file:
            self.text, self.no_text = (torch.from_numpy(file[name][:]).float() for name in ("text", "null_text"))
            self.group_ids = torch.from_numpy(file["group_id"][:]) if "group_id" in file else None
            images = file["images"]
            mean, std = (torch.tensor(images.attrs[name], dtype=torch.float32).view(3, 1, 1) for name in ("mean", "std"))
            pixels = (torch.from_numpy(images[:]).float() / 255 - mean) / std
            self.latents = torch.nn.functional.pixel_unshuffle(pixels, int(images.attrs["pixel_unshuffle"]))

    def __len__(self):
        return len(self.latents)


class Draws:
    """What chance decides of a row, by the step and its place in it: the same on any number of ranks."""

    KINDS = ("noise", "held_out_noise", "look_noise", "timestep", "caption")

    def __init__(self, seed):
        self.seed = seed

    def _random(self, kind, step, place):
        return np.random.default_rng([self.seed, self.KINDS.index(kind), step, place])

    def noise(self, kind, step, places, shape):
        return torch.from_numpy(np.stack([self._random(kind, step, place).standard_normal(shape, np.float32) for place in places]))

    def timesteps(self, step, places, count):
        return torch.tensor([self._random("timestep", step, place).integers(count) for place in places])

    def captioned(self, step, places, empty_share):
        return torch.tensor([self._random("caption", step, place).random() >= empty_share for place in places])


class Rows:
    """Noised rows [B], and what the model should predict for them."""

    def __init__(self, scheduler, pictures, which, ids, timesteps, noise, captioned=None):
        latents, text = pictures.latents[which], pictures.text[which]
        self.ids, self.timesteps, self.no_text = ids, timesteps, pictures.no_text
        self.captioned = torch.ones(len(ids), dtype=torch.bool) if captioned is None else captioned
        self.noisy = scheduler.add_noise(latents, noise, timesteps)
        self.target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        self.text = torch.where(self.captioned.view(-1, 1, 1), text, self.no_text)
        # By which copies find each other: what the caption says and a small version of the picture.
        small = torch.nn.functional.adaptive_avg_pool2d(latents, 4).flatten(1)
        self.likeness = torch.cat([torch.nn.functional.normalize(part, dim=1, eps=1e-6) for part in (text.mean(1), small)], 1)

    def predict(self, unet, rows=slice(None), text=None):
        return unet(self.noisy[rows], self.timesteps[rows], self.text[rows] if text is None else text, return_dict=False)[0]

    def about(self, unet, start):
        """What the sieve is told beside the prediction. It asks for what its rule reads, and for a few rows only."""
        return {"ids": self.ids, "timesteps": self.timesteps, "target": self.target, "has_caption": self.captioned,
                "likeness": self.likeness, "start": lambda rows: self.predict(start, rows),
                "null": lambda rows: self.predict(unet, rows, self.no_text.expand(len(rows), -1, -1))}


class Tuning:
    """A model that is trained, and with what."""

    def __init__(self, unet, data, held_out, sieve, optimizer, scheduler, draws, *, empty_share=0.1, max_norm=1.0):
        self.plain, self.start = unet, copy.deepcopy(unet).requires_grad_(False)
        together = distributed.is_initialized() and distributed.get_world_size() > 1
        self.rank = distributed.get_rank() if together else 0
        self.unet = torch.nn.parallel.DistributedDataParallel(unet) if together else unet
        self.data, self.held_out, self.sieve, self.optimizer = data, held_out, sieve, optimizer
        self.scheduler, self.draws, self.empty_share, self.max_norm = scheduler, draws, empty_share, max_norm

    def step(self, ids):
        """One step on the samples `ids` [B], this rank's; returns the weights of their rows."""
        number, timesteps = self.sieve.clock[0], self.scheduler.config.num_train_timesteps
        first = self.rank * self.sieve.batch_size
        places = range(first, first + len(ids))
        rows = Rows(self.scheduler, self.data, ids, ids, self.draws.timesteps(number, places, timesteps),
                    self.draws.noise("noise", number, places, self.data.latents.shape[1:]),
                    self.draws.captioned(number, places, self.empty_share))
        prediction = rows.predict(self.unet)
        plan = self.sieve.inspect(prediction=prediction, **rows.about(self.plain, self.start))
        plan.loss((prediction - rows.target).square().mean(dim=(1, 2, 3))).backward()
        self.measure(self.held_out, self.sieve.held_out_visits(), "held_out_noise", self.sieve.observe)
        self.measure(self.data, self.sieve.looks(), "look_noise", self.sieve.look)
        self.sieve.step(self.optimizer, max_norm=self.max_norm)
        self.optimizer.zero_grad()
        return plan.weights

    @torch.no_grad()
    def measure(self, pictures, visits, kind, tell):
        """Rows that are not trained on: held-out pictures, and flagged samples that are looked at again."""
        if not visits:
            return
        which = torch.tensor([getattr(visit, "picture", visit.id) for visit in visits])
        timesteps = torch.tensor([int(visit.timestep_fraction * self.scheduler.config.num_train_timesteps) for visit in visits])
        noise = self.draws.noise(kind, self.sieve.clock[0], [visit.place for visit in visits], pictures.latents.shape[1:])
        rows = Rows(self.scheduler, pictures, which, torch.tensor([visit.id for visit in visits]), timesteps, noise)
        tell(prediction=rows.predict(self.plain), **rows.about(self.plain, self.start))


def epochs(sieve, seed):
    """Batches of ids without end; samples that the sieve has flagged are passed over."""
    batches = memsieve.PassOverBatches(sieve, seed=seed)
    while True:
        yield from batches
        sieve.epoch += 1


def make(config, ledger_path, draws):
    """Everything as the configuration of a trainer's run names it."""
    scheduler = DDPMScheduler(**{name: config.get(name, default) for name, default in NOISE.items()})
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise SystemExit(f"fine_tune.py: prediction_type is {scheduler.config.prediction_type}; this loop knows epsilon and v_prediction")
    data, held_out = Pictures(config["data"]["train"]), Pictures(config["data"]["held_out"])
    unet = UNet2DConditionModel.from_pretrained(config["model"]["pretrained"], torch_dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(unet.parameters(), config["learning_rate"], weight_decay=config["adam_weight_decay"], fused=True)
    sieve = memsieve.Sieve(config["sieve"], dataset_size=len(data), batch_size=config["train_batch_size"], held_out_size=len(held_out),
                           group_ids=data.group_ids, device="cpu", ledger=ledger_path)
    return Tuning(unet, data, held_out, sieve, optimizer, scheduler, draws, empty_share=config["proportion_empty_prompts"],
                  max_norm=config["max_grad_norm"])


def main(path, folder):
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    config = yaml.safe_load(Path(path).read_text())
    Path(folder).mkdir(parents=True, exist_ok=True)
    tuning = make(config, Path(folder) / "ledger.h5", Draws(config["seed"]))
    sieve, batches = tuning.sieve, epochs(tuning.sieve, config["seed"])
    for step in range(config["max_train_steps"]):
        tuning.step(torch.tensor(next(batches)))
        if tuning.rank == 0 and step % 20 == 19:
            reports = sieve.reports()
            print(f"step {step + 1}: {sum(report.dropped for report in reports)} rows dropped, "
                  f"{sum(report.passed_over for report in reports)} passed over", flush=True)
    sieve.flush()
    if tuning.rank == 0:
        tuning.plain.save_pretrained(Path(folder) / "unet")
        print(ledger.samples(folder).head(20))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
