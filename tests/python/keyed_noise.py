"""diffusion/noise/keyed.h again, from its description: noise that is keyed by seed, stream and row."""
import numpy as np

MASK = (1 << 64) - 1
SHUFFLE, TRAIN_NOISE, TRAIN_TIMESTEP, TRAIN_CAPTION, HELD_OUT_NOISE, DRAW_NOISE, LOOK_NOISE, FORGET_SHUFFLE = 1, 2, 3, 4, 5, 9, 23, 28
NEGATIVE_NOISE, CAPTION_GAIN_NOISE, CANARY_NOISE = 40, 41, 60


def split_mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def keyed_bits(seed, stream, first, second):
    h = split_mix64(seed)
    for word in (stream, first, second):
        h = split_mix64(h ^ (word & MASK))
    return h


def below(bits, bound):
    """`bits` as a number in [0, bound)."""
    return ((bits >> 32) * bound) >> 32


def permutation(size, seed, epoch):
    """The order in which epoch `epoch` walks through a data set (diffusion/data/sampler.h)."""
    order = list(range(size))
    for i in range(size - 1, 0, -1):
        j = below(keyed_bits(seed, SHUFFLE, epoch, i), i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def philox4x32(key, blocks):
    """uint32 [4 * blocks]: Philox 4x32-10 (Salmon et al., SC 2011) with counters 0, 1, 2 ..."""
    counter = np.zeros((4, blocks), np.uint64)
    counter[0] = np.arange(blocks)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = np.stack([(b >> np.uint64(32)) ^ counter[1] ^ np.uint64(k0), b & low,
                            (a >> np.uint64(32)) ^ counter[3] ^ np.uint64(k1), a & low])
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return counter.T.reshape(-1)


def normal(seed, stream, rows, shape):
    """float32 [rows, *shape]; `rows`: pairs of numbers."""
    size = int(np.prod(shape))
    found = []
    for first, second in rows:
        bits = philox4x32(keyed_bits(seed, stream, first, second), (size + 3) // 4 + 1)
        unit = (bits[:size + size % 2].astype(np.float64) + 1) * 2.0**-32
        radius, angle = np.sqrt(-2 * np.log(unit[0::2])), 2 * np.pi * unit[1::2]
        found.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:size])
    return np.stack(found).astype(np.float32).reshape(len(rows), *shape)
