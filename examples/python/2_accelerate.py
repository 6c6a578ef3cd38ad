"""accelerate, on as many ranks as there are, with two micro-batches a step; saved and resumed in the middle.

    accelerate launch --num_processes 2 --cpu 2_accelerate.py
    torchrun --nproc_per_node 2 2_accelerate.py
"""
import tempfile

import toy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather, set_seed

import memsieve
from memsieve.integrations.accelerate import sieve_for

MICRO, ROWS = 2, 32  # rows of a step, over all ranks and micro-batches


def build(accelerator):
    """Model, optimiser, data and sieve; nothing of the loop knows of the sieve but the four lines that have its name."""
    set_seed(3)
    data, model = memsieve.WithIds(toy.Data()), toy.Denoiser()
    size = ROWS // MICRO // accelerator.num_processes
    loader = torch.utils.data.DataLoader(data, batch_size=size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 2e-3), loader)
    sieve = sieve_for(accelerator, toy.RULE, dataset_size=len(data), batch_size=size)
    return model, optimizer, loader, sieve


def train(accelerator, model, optimizer, loader, sieve, epochs, count):
    plain = accelerator.unwrap_model(model)  # no gradient: DistributedDataParallel has nothing to do
    for sieve.epoch in epochs:
        for batch in loader:
            with accelerator.accumulate(model):
                t = torch.randint(toy.TIMESTEPS, (len(batch["text"]),), device=accelerator.device)
                noisy, target = toy.add_noise(batch["picture"], torch.randn_like(batch["picture"]), t)
                prediction = model(noisy, t, batch["text"])
                plan = sieve.inspect(batch["sample_id"].cpu(), t, prediction, target,
                                     null=lambda k: plain(noisy[k], t[k], torch.zeros_like(batch["text"][k])))
                accelerator.backward(plan.loss((prediction - target).square().mean(dim=(1, 2, 3))))
                sieve.step(optimizer)
                optimizer.zero_grad()
                count.add(batch["sample_id"].cpu(), plan.weights)


def main():
    accelerator = Accelerator(gradient_accumulation_steps=MICRO, cpu=not torch.cuda.is_available())
    folder = broadcast_object_list([tempfile.mkdtemp()])[0]
    count = toy.Count()
    parts = build(accelerator)
    train(accelerator, *parts, range(6), count)
    accelerator.save_state(folder)
    accelerator.free_memory()
    accelerator._custom_objects.clear()  # a new process would have none
    parts = build(accelerator)
    accelerator.load_state(folder)
    train(accelerator, *parts, range(6, 12), count)
    count.visits, count.dropped = (gather(part.to(accelerator.device)).view(-1, 2).sum(0).cpu() for part in (count.visits, count.dropped))
    accelerator.print(f"{parts[3].clock[0]} steps on {accelerator.num_processes} ranks; {count}")
    del parts  # the group's threads end with the last that holds it, which must be before Python does
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main()
