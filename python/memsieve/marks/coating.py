"""The signal of DIAGNOSIS (Wang et al., "DIAGNOSIS: Detecting Unauthorized Data Usages in Text-to-image Diffusion Models", ICLR
2024): pictures are warped by a field of random shifts (WaNet; Nguyen and Tran, ICLR 2021), too little to be seen. Here the field
comes from a secret seed, so that it can be looked for."""

from functools import lru_cache

import numpy as np

SPAN = 1280   # the strength is given in 1 / 1280 of half a picture's side, as published
CUBIC = -0.75  # of the cubic convolution, as in torch


def field(seed, grid):
    """[2, grid, grid] float64: shifts along x and along y, of mean magnitude 1."""
    values = np.random.default_rng(seed).uniform(-1, 1, (2, grid, grid))
    return values / np.abs(values).mean()


@lru_cache(maxsize=8)
def upsampling(grid, side):
    """[side, grid]: cubic interpolation from `grid` values to `side`, ends on ends; beyond the ends the last value goes on."""
    at = np.arange(side) * ((grid - 1) / max(side - 1, 1))
    first, matrix = np.floor(at).astype(int), np.zeros((side, grid))
    for step in range(-1, 3):
        distance = np.abs(at - (first + step))
        near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
        far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(matrix, (np.arange(side), np.clip(first + step, 0, grid - 1)), weight)
    return matrix


def coat(values, shifts, strength):
    """A picture [H, W, C] warped by the field `shifts`: each pixel is taken, bilinearly, from where it is shifted to."""
    height, width = values.shape[:2]
    down, across = upsampling(shifts.shape[-1], height), upsampling(shifts.shape[-1], width)
    dx, dy = (down @ part @ across.T * (strength / SPAN) for part in shifts)
    x = (np.clip(np.linspace(-1, 1, width)[None] + dx, -1, 1) + 1) / 2 * (width - 1)
    y = (np.clip(np.linspace(-1, 1, height)[:, None] + dy, -1, 1) + 1) / 2 * (height - 1)
    left, top = np.minimum(x.astype(int), max(width - 2, 0)), np.minimum(y.astype(int), max(height - 2, 0))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = (x - left)[..., None], (y - top)[..., None]
    return ((values[top, left] * (1 - a) + values[top, right] * a) * (1 - b)
            + (values[bottom, left] * (1 - a) + values[bottom, right] * a) * b)


def response(values, grid):
    """[2, grid, grid]: how much a picture [H, W, C] looks warped along each shift of a field, positive where along it. The score
    of a field is the sum of its products with this: a matched filter, of which one picture is worked out for all fields at once.

    A warped picture is I + grad I . d to first order. A smooth version of it stands for I; what it lacks is compared with the
    smooth version's gradient along d."""
    from scipy.ndimage import gaussian_filter
    height, width = values.shape[:2]
    width_of_cell = max(max(height, width) / grid, 1.0)
    smooth = gaussian_filter(values.astype(np.float64), (width_of_cell, width_of_cell, 0), mode="nearest")
    rest, down, across = values - smooth, upsampling(grid, height), upsampling(grid, width)
    slope_y, slope_x = np.gradient(smooth, axis=(0, 1))
    along = [(rest * slope_x).sum(-1) * (width - 1), (rest * slope_y).sum(-1) * (height - 1)]
    out = np.stack([down.T @ part @ across for part in along])
    norm = np.sqrt((out**2).sum())
    return out / norm if norm > 0 else out  # each picture weighs the same in a sum over many


def scores(responses, fields):
    """[pictures, fields]: of responses [P, 2, g, g] and fields [F, 2, g, g]."""
    return responses.reshape(len(responses), -1) @ fields.reshape(len(fields), -1).T
