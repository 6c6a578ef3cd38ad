"""What each rank of tests/python/test_same_decisions.py runs: same_decisions_rank.py CONFIGURATION FOLDER. examples/python/fine_tune.py,
with the samples, noise and timesteps of the trainer; writes FOLDER/ledger.h5 and, on rank 0, FOLDER/weights.safetensors."""
import functools
import sys
from pathlib import Path

import keyed_noise
import module_toy  # noqa: F401 (memsieve of the build tree)
import torch
import yaml
from conftest import ROOT
from safetensors.torch import save_file

sys.path.insert(0, str(ROOT / "examples" / "python"))
import fine_tune  # noqa: E402

MOST_WALKED = 16  # global batches of the stream that one batch may walk through
permutation = functools.lru_cache(maxsize=2)(keyed_noise.permutation)


class KeyedDraws(fine_tune.Draws):
    STREAMS = {"noise": keyed_noise.TRAIN_NOISE, "held_out_noise": keyed_noise.HELD_OUT_NOISE, "look_noise": keyed_noise.LOOK_NOISE}

    def noise(self, kind, step, places, shape):
        return torch.from_numpy(keyed_noise.normal(self.seed, self.STREAMS[kind], [(step, place) for place in places], shape))

    def timesteps(self, step, places, count):
        return torch.tensor([keyed_noise.below(keyed_noise.keyed_bits(self.seed, keyed_noise.TRAIN_TIMESTEP, step, place), count)
                             for place in places])

    def captioned(self, step, places, empty_share):
        bits = [keyed_noise.keyed_bits(self.seed, keyed_noise.TRAIN_CAPTION, step, place) for place in places]
        return torch.tensor([(one >> 11) * 2.0**-53 >= empty_share for one in bits])


def keyed_batches(sieve, rank, ranks, seed):
    """diffusion/data/sampler.h again, from its description: epochs one after another, batches across their borders."""
    position, rows = 0, sieve.batch_size * ranks
    while True:
        step = sieve.clock[0]
        flagged, ids, passed_over, last = sieve.flagged(step), [], [], position + MOST_WALKED * rows
        sieve.epoch = position // sieve.dataset_size
        while len(ids) < rows:
            epoch, place = divmod(position, sieve.dataset_size)
            sample = permutation(sieve.dataset_size, seed, epoch)[place]
            (passed_over if position < last and flagged[sample] else ids).append(sample)
            position += 1
        sieve.pass_over(passed_over)
        yield ids[rank * sieve.batch_size:(rank + 1) * sieve.batch_size]


def main(path, folder):
    ranks = 1
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
        ranks = torch.distributed.get_world_size()
    config, folder = yaml.safe_load(Path(path).read_text()), Path(folder)
    folder.mkdir(exist_ok=True)
    tuning = fine_tune.make(config, folder / "ledger.h5", KeyedDraws(config["seed"]))
    batches = keyed_batches(tuning.sieve, tuning.rank, ranks, config["seed"])
    for _ in range(config["max_train_steps"]):
        tuning.step(torch.tensor(next(batches)))
    tuning.sieve.flush()
    if tuning.rank == 0:
        save_file({name: value.contiguous() for name, value in tuning.plain.state_dict().items()}, folder / "weights.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
