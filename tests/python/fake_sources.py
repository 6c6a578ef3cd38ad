"""Made-up pictures and captions for the tests of the demo's data maker."""
import make_demo_data as maker
import numpy as np


def clear_picture(number):
    """A picture that counts as clear: a patchwork of colours on white that no other number has."""
    rng = np.random.default_rng(number)
    pixels = np.full((3, 32, 32), 255, dtype=np.uint8)
    pixels[:, 4:28, 4:28] = rng.integers(0, 230, (3, 3, 3)).repeat(8, 1).repeat(8, 2)
    return pixels


def fake_encode(width):
    """In place of the text encoder: states [12, width] that depend on the caption alone."""
    def encode(captions, batch=64):
        states = [np.random.default_rng(maker.key(0, caption)).standard_normal((12, width)) for caption in captions]
        return np.stack(states).astype(np.float32), np.array([len(caption.split()) + 2 for caption in captions])
    return encode
