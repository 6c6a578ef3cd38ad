"""A LoRA with diffusers and PEFT: the starting model is the one that is trained, its adapters off, so that no second copy is needed.
The rule is the package's for loops without held-out pictures. On the demo's base model and 72 emoji, of which 12 are one and the same."""
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from fine_tune import Pictures
from peft import LoraConfig

import memsieve
from memsieve.integrations.peft import adapters_off

HERE = Path(__file__).parent
B, REPEATED, STEPS = 16, 12, 150
torch.manual_seed(0)
emoji = Pictures(HERE / "emoji" / "train.h5")
chosen = torch.cat([torch.arange(REPEATED), torch.arange(len(emoji) - 60, len(emoji))])  # copies of the first picture, and 60 others
latents, text = emoji.latents[chosen], emoji.text[chosen]

unet = UNet2DConditionModel.from_pretrained(HERE.parents[1] / "models" / "demo_base", torch_dtype=torch.float32)
unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
trained = [p for p in unet.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, 2e-3)
noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")
sieve = memsieve.Sieve("no_held_out", dataset_size=len(chosen), batch_size=B)
visits, dropped = torch.zeros(2), torch.zeros(2)  # of the repeated picture, of the others

for step in range(STEPS):
    ids = torch.randint(len(chosen), (B,))
    noise, timesteps = torch.randn(B, *latents.shape[1:]), torch.randint(1000, (B,))
    noisy = noise_scheduler.add_noise(latents[ids], noise, timesteps)
    target = noise_scheduler.get_velocity(latents[ids], noise, timesteps)
    model_pred = unet(noisy, timesteps, text[ids]).sample
    plan = sieve.inspect(ids, timesteps, model_pred, target,
                         start=adapters_off(unet, lambda k: unet(noisy[k], timesteps[k], text[ids[k]]).sample))
    plan.loss((model_pred - target).square().mean(dim=(1, 2, 3))).backward()
    sieve.step(optimizer, max_norm=1.0)
    optimizer.zero_grad()
    other = (ids >= REPEATED).long()
    visits.index_add_(0, other, torch.ones(B))
    dropped.index_add_(0, other, plan.weights.eq(0).float())
    if step % 50 == 49:
        repeated, others = (100 * dropped / visits).tolist()
        print(f"step {step + 1}: dropped: {repeated:.0f}% of the visits of the repeated picture, {others:.0f}% of the others", flush=True)

reports = sieve.reports()
assert all(p.requires_grad for p in trained), "turning the adapters off and on must leave them trainable"
print(f"{sum(report.probed for report in reports)} of {sum(report.rows for report in reports)} rows compared with the starting model")
