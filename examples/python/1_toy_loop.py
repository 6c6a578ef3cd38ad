"""The smallest loop with a sieve: one process, no GPU, a toy denoiser. A sixteenth of the rows are one picture; at the end it says how
many of its visits were dropped."""
import toy
import torch

import memsieve

B, steps = 32, 400
torch.manual_seed(3)
data, model, count = toy.Data(), toy.Denoiser(), toy.Count()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)

# [readme]
sieve = memsieve.Sieve(toy.RULE, dataset_size=len(data), batch_size=B)

for step in range(steps):
    ids, t = torch.randint(len(data), (B,)), torch.randint(toy.TIMESTEPS, (B,))
    text, no_text = data.text[ids], torch.zeros(16)
    noisy, target = toy.add_noise(data.pictures[ids], torch.randn(B, 4, 4, 4), t)
    prediction = model(noisy, t, text)

    # The same model on rows k, with the empty caption.
    plan = sieve.inspect(ids, t, prediction, target, null=lambda k: model(noisy[k], t[k], no_text.expand(len(k), 16)))
    loss = plan.loss((prediction - target).square().mean(dim=(1, 2, 3)))
    loss.backward()
    sieve.step(optimizer)
    optimizer.zero_grad()
    # [/readme]
    count.add(ids, plan.weights)
    if step % 50 == 49:
        report = sieve.reports()[-1]
        print(f"step {report.step:3}: {report.dropped} of {report.rows} rows dropped")
print(count)
