"""Batches that flagged samples are left out of (`action.pass_over`)."""
import torch

MOST_PASSED_OVER = 8  # global batches' worth of flagged samples in one step; then they are taken as they come


class PassOverBatches(torch.utils.data.Sampler):
    """For DataLoader(batch_sampler=...): batches of sample ids, an epoch each time it is iterated; flagged samples are passed over and
    others take their places. One shuffled stream of all samples, the same on every rank, is cut into global batches, of which each
    rank gets its part; the rest of an epoch that fills no batch is left out. The sieve's ledger learns what was passed over.

    The sieve may be asked five steps ahead: num_workers * prefetch_factor must be no more batches than that, or the DataLoader raises
    DataError. Do not have accelerate prepare such a loader: it is divided over the ranks already.

    sieve: its batch_size and micro_batches are taken. rank, world_size: of the ranks that share the stream; None = those of the sieve's
        group.
    seed: of the shuffling; epoch e is shuffled by seed + e, with `sieve.epoch` the epoch. shuffle: False = in order.
    """

    def __init__(self, sieve, *, rank: int | None = None, world_size: int | None = None, seed: int = 0, shuffle: bool = True):
        self.sieve, self.seed, self.shuffle = sieve, seed, shuffle
        self.rank = rank if rank is not None else torch.distributed.get_rank(sieve.group) if sieve.group is not None else 0
        if world_size is None:
            world_size = torch.distributed.get_world_size(sieve.group) if sieve.group is not None else 1
        self.world_size = world_size
        self._start = self._position = 0

    def _rows(self):
        return self.sieve.batch_size * self.sieve.micro_batches * self.world_size

    def __len__(self) -> int:
        """Batches of an epoch in which nothing is passed over."""
        return self.sieve.dataset_size // self._rows() * self.sieve.micro_batches

    def _order(self):
        if not self.shuffle:
            return list(range(self.sieve.dataset_size))
        generator = torch.Generator().manual_seed(self.seed + self.sieve.epoch)
        return torch.randperm(self.sieve.dataset_size, generator=generator).tolist()

    def __iter__(self):
        stream, self._position, self._start = iter(self._order()[self._start:]), self._start, 0
        step = self.sieve.clock[0]
        while (rows := self._global_batch(stream, step)) is not None:
            size = self.sieve.batch_size
            for micro in range(self.sieve.micro_batches):
                first = (micro * self.world_size + self.rank) * size
                yield rows[first:first + size]
            step += 1

    def _global_batch(self, stream, step):
        flagged, rows, passed_over = set(self.sieve.flagged(step).nonzero().flatten().tolist()), [], []
        for sample in stream:
            self._position += 1
            if sample in flagged and len(passed_over) < MOST_PASSED_OVER * self._rows():
                passed_over.append(sample)
            else:
                rows.append(sample)
            if len(rows) == self._rows():
                break
        if passed_over:
            self.sieve.pass_over(passed_over, step)
        return rows if len(rows) == self._rows() else None

    def state_dict(self):
        """Where the stream stands; with workers, up to the batches that they have fetched."""
        return {"position": self._position}

    def load_state_dict(self, state):
        """The next epoch that is iterated begins there."""
        self._start = int(state["position"])
