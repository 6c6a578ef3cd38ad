"""Lightning: a callback makes the sieve, ends its steps and keeps its state in Lightning's checkpoints."""
import toy
import torch
from lightning.pytorch import LightningModule, Trainer

import memsieve
from memsieve.integrations.lightning import SieveCallback

B = 16


class Tune(LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.count = toy.Denoiser(), toy.Count()

    def training_step(self, batch, batch_idx):
        picture, text, ids = batch["picture"], batch["text"], batch["sample_id"].cpu()
        t = torch.randint(toy.TIMESTEPS, (len(text),), device=self.device)
        noisy, target = toy.add_noise(picture, torch.randn_like(picture), t)
        prediction = self.model(noisy, t, text)
        plan = self.sieve.inspect(ids, t, prediction, target, null=lambda k: self.model(noisy[k], t[k], torch.zeros_like(text[k])))
        self.count.add(ids, plan.weights)
        return plan.loss((prediction - target).square().mean(dim=(1, 2, 3)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 2e-3)


torch.manual_seed(3)
data = memsieve.WithIds(toy.Data())
loader = torch.utils.data.DataLoader(data, batch_size=B, shuffle=True, drop_last=True)
tune = Tune()
trainer = Trainer(max_epochs=12, accelerator="cpu", accumulate_grad_batches=2, gradient_clip_val=1.0, logger=False, enable_progress_bar=False,
                  enable_checkpointing=False, enable_model_summary=False,
                  callbacks=[SieveCallback(toy.RULE, dataset_size=len(data), batch_size=B)])
trainer.fit(tune, loader)
print(f"{trainer.global_step} steps; {tune.count}")
