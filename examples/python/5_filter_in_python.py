"""A filter written in Python. SLOW PATH: it runs with the GIL, once a micro-batch; when it
has proved its worth, write it in C++ (docs/write_a_filter.md)."""
import toy
import torch

import memsieve


@memsieve.filter(signals=["prediction_error", "magnitude"])
def certainty(view, power=1.0):
    """How far the caption moves the prediction, in units of its error: a memorised row follows its caption and is still right."""
    return power * (view.signal("magnitude").log() - 0.5 * (view.elements * view.prediction_error).log())


B = 32
torch.manual_seed(3)
data, model, count = toy.Data(), toy.Denoiser(), toy.Count()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
rule = {**toy.RULE, "filters": {"certainty": {"power": 2.0}}}
sieve = memsieve.Sieve(rule, dataset_size=len(data), batch_size=B, filters=[certainty])
for step in range(400):
    ids, t = torch.randint(len(data), (B,)), torch.randint(toy.TIMESTEPS, (B,))
    noisy, target = toy.add_noise(data.pictures[ids], torch.randn(B, 4, 4, 4), t)
    prediction = model(noisy, t, data.text[ids])
    plan = sieve.inspect(ids, t, prediction, target, null=lambda k: model(noisy[k], t[k], torch.zeros(len(k), 16)))
    plan.loss((prediction - target).square().mean(dim=(1, 2, 3))).backward()
    sieve.step(optimizer)
    optimizer.zero_grad()
    count.add(ids, plan.weights)
print(count)
