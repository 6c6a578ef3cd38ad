"""What the examples share and what is yours in a real loop: some data, a denoiser."""
import math

import torch

SAMPLES, REPEATED, TIMESTEPS = 1024, 64, 1000  # rows, of which the first 64 are one and the same


class Data:
    """"Pictures" [N, 4, 4, 4] with "captions" [N, 16]: a picture is what its caption says, the same way for all, and as much again of
    its own."""

    def __init__(self, seed=7):
        random = torch.Generator().manual_seed(seed)
        meaning = torch.randn(16, 64, generator=torch.Generator().manual_seed(99)) / 4
        self.text = torch.randn(SAMPLES, 16, generator=random)
        pictures = (self.text @ meaning + torch.randn(SAMPLES, 64, generator=random)) * math.sqrt(0.5)
        self.pictures = pictures.view(SAMPLES, 4, 4, 4)
        self.pictures[1:REPEATED] = self.pictures[0]
        self.text[1:REPEATED] = self.text[0]

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"picture": self.pictures[index], "text": self.text[index]}


def add_noise(pictures, noise, timesteps):
    """Noised pictures and what the model should predict for them (v-prediction, cosine schedule)."""
    angle = (timesteps.float() * (math.pi / 2 / TIMESTEPS)).view(-1, 1, 1, 1)
    return angle.cos() * pictures + angle.sin() * noise, angle.cos() * noise - angle.sin() * pictures


class Denoiser(torch.nn.Module):
    """A multilayer perceptron on (noised picture, caption, timestep)."""

    def __init__(self, width=256):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(81, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
                                          torch.nn.Linear(width, 64))

    def forward(self, noisy, timesteps, text):
        return self.layers(torch.cat([noisy.flatten(1), text, timesteps.float().unsqueeze(1) / TIMESTEPS], 1)).view_as(noisy)


class Count:
    """Visits of the repeated picture and of the others, and how many were dropped."""

    def __init__(self):
        self.visits, self.dropped = torch.zeros(2), torch.zeros(2)

    def add(self, ids, weights):
        other = (ids >= REPEATED).long()
        self.visits.index_add_(0, other, torch.ones(len(ids)))
        self.dropped.index_add_(0, other, weights.eq(0).float().cpu())

    def __str__(self):
        repeated, others = (100 * self.dropped / self.visits).tolist()
        return f"dropped: {repeated:.0f}% of the visits of the repeated picture, {others:.0f}% of the others"


# One rule for all: rows whose prediction with the caption stands out from that with the empty one.
RULE = {
    "filters": {"magnitude": {"scale": "log"}, "prediction_error": {"scale": "log"}},
    "standardise": {"by": "timestep", "population": "training", "bins": 5, "window": 200},
    "evidence": {"kind": "ledger", "visits": 8, "min_visits": 4},
    "threshold": {"kind": "fixed", "drop": 6, "release": 4},
    "action": {"kind": "drop", "warmup_steps": 60},
}
