"""A LoRA of a tiny random Stable Diffusion UNet with diffusers and PEFT: the starting model is the one that is trained, its adapters
off, so that no second copy is needed. The rule is the package's for loops without held-out pictures."""
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

import memsieve
from memsieve.integrations.peft import adapters_off

B, SAMPLES, REPEATED = 16, 96, 16  # the first 16 are one picture with one caption
torch.manual_seed(0)
latents, text = torch.randn(SAMPLES, 4, 8, 8), torch.randn(SAMPLES, 4, 16)
latents[1:REPEATED], text[1:REPEATED] = latents[0], text[0]

unet = UNet2DConditionModel(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
                            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                            cross_attention_dim=16)
unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]))
trained = [p for p in unet.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, 1e-2)
noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
# Half of the rows are compared with the starting model, twice as many as the rule asks for.
sieve = memsieve.Sieve("no_held_out", dataset_size=SAMPLES, batch_size=B, overrides=["sieve.probe.fraction=0.5"])
visits, dropped = torch.zeros(2), torch.zeros(2)  # of the repeated picture, of the others

for step in range(120):
    ids = torch.randint(SAMPLES, (B,))
    noise, timesteps = torch.randn(B, 4, 8, 8), torch.randint(1000, (B,))
    noisy = noise_scheduler.add_noise(latents[ids], noise, timesteps)
    model_pred = unet(noisy, timesteps, text[ids]).sample
    plan = sieve.inspect(ids, timesteps, model_pred, noise,
                         start=adapters_off(unet, lambda k: unet(noisy[k], timesteps[k], text[ids[k]]).sample))
    plan.loss((model_pred - noise).square().mean(dim=(1, 2, 3))).backward()
    sieve.step(optimizer, max_norm=1.0)
    optimizer.zero_grad()
    other = (ids >= REPEATED).long()
    visits.index_add_(0, other, torch.ones(B))
    dropped.index_add_(0, other, plan.weights.eq(0).float())

reports = sieve.reports()
assert all(p.requires_grad for p in trained), "turning the adapters off and on must leave them trainable"
probed, rows = sum(report.probed for report in reports), sum(report.rows for report in reports)
print(f"{probed} of {rows} rows compared with the starting model; dropped: {100 * dropped[0] / visits[0]:.0f}% of the visits of the repeated "
      f"picture, {100 * dropped[1] / visits[1]:.0f}% of the others")
