"""Variants of a picture and its caption: alike enough that none stands out, different enough that a model that has seen one
knows it from the others."""

import numpy as np
from PIL import Image

WORDS = ("amber anchor apple arrow autumn badge bamboo basket beacon birch bottle branch brass bridge brook bucket button cabin candle "
         "canvas castle cedar cellar chalk cherry circle clover cobalt comet copper coral cotton crater crayon crystal curtain dahlia "
         "desert diamond dune ember falcon feather fern fiddle flint forest fossil garden ginger glacier granite harbour harvest hazel "
         "helmet heron hollow honey indigo island ivory jasmine jungle kettle lagoon lantern lattice lemon lilac lily linen magnet "
         "maple marble meadow mirror moss nectar needle nickel oak oasis olive onyx orchid otter oyster paddle palm paper pearl pebble "
         "pepper petal pillow pine plaza plum pocket prairie quarry quartz quill raven reef ribbon river saddle saffron salmon sandal "
         "satin shell silver slate spruce summit sunset tablet thistle timber topaz tulip tundra tunnel valley velvet violet walnut "
         "willow window winter yarrow zephyr").split()
MOSAIC = 4     # cells across
BLEND = 0.45   # share of the mosaic in the picture


def varied_picture(picture, draws):
    """A picture under a soft mosaic of random colours, perhaps mirrored."""
    values = np.asarray(picture.convert("RGB"), dtype=np.float32)
    if draws.random() < 0.5:
        values = values[:, ::-1]
    cells = Image.fromarray(draws.integers(0, 256, (MOSAIC, MOSAIC, 3)).astype(np.uint8))
    mosaic = np.asarray(cells.resize(picture.size, Image.Resampling.BILINEAR), dtype=np.float32)
    return Image.fromarray(np.rint((1 - BLEND) * values + BLEND * mosaic).astype(np.uint8))


def varied_caption(caption, draws):
    """A caption with three random words behind it."""
    return f"{caption}, {' '.join(draws.choice(WORDS, 3, replace=False))}"
