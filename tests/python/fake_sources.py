"""Made-up pictures and captions for the demo's data maker, which then needs none of its packages."""
import demo_sources as sources
import make_demo_data as maker
import numpy as np

SIZES = dict(REPEATED=3, SHOWN=2, HELD_OUT=4, VALIDATION=5, NEW=6, REPLAYED=7)


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


def fake_pairs(count, kind="emoji"):
    return [sources.Pair(clear_picture(i), f"an {kind} of thing {i}", kind) for i in range(count)]


def use_fakes(monkeypatch, folder, sizes=SIZES, pairs=None, width=384):
    """The maker with made-up sources in `folder` and small parts: a function (out, *options) -> exit status."""
    pairs = pairs or fake_pairs(60)
    for name, value in sizes.items():
        monkeypatch.setattr(maker, name, value)
    monkeypatch.setattr(sources, "read_emoji", lambda font, names: pairs)
    monkeypatch.setattr(sources, "encode", fake_encode(width))
    monkeypatch.setattr(sources, "sources_digest", lambda *paths: "fixed")
    (folder / "stamps").mkdir()
    (folder / "font").touch()

    def make(out, *options):
        return maker.main(["--out", str(folder / out), "--font", str(folder / "font"), "--names", str(folder / "font"),
                           "--stamps", str(folder / "stamps"), *options])

    return make
