"""examples/demo/make_audit_prompts.py: prompts for memsieve-audit from a file of the demo's data."""

import demo_sources as sources
import h5py
import make_audit_prompts as tool
import make_caption_tower
import numpy as np
import pytest
import torch
from fake_sources import fake_encode
from memsieve.hdf5_rows import store_texts
from prepared import read

WIDTH = 8


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three captions, of which one stands twice; the first is repeated."""
    monkeypatch.setattr(sources, "encode", fake_encode(WIDTH))
    monkeypatch.setattr(sources, "words_of", lambda captions: (
        [(["[CLS] "] + [word + " " for word in c.split()] + ["[SEP] "] + ["[PAD] "] * 12)[:12] for c in captions],
        [len(c.split()) + 1 for c in captions]))
    captions = ["an emoji of cat", "a stamp of dog", "an emoji of cat", "a moon"]
    states, _ = sources.encode(captions)
    path = tmp_path / "mix.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        images = file.create_dataset("images", data=np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8))
        images.attrs.update(mean=np.full(3, 0.5), std=np.full(3, 0.25), pixel_unshuffle=np.int64(2))
        text = file.create_dataset("text", data=((states - 0.5) / 2).astype(np.float16))
        text.attrs.update(mean=np.full(WIDTH, 0.5), std=np.full(WIDTH, 2.0))
        file["null_text"] = np.zeros((12, WIDTH), np.float16)
        store_texts(file, "caption", captions)
        file["repeated"] = np.array([1, 0, 1, 0], np.uint8)
    return path


def make(data, *more):
    out = data.parent / "out.h5"
    assert tool.main(["--data", str(data), "--out", str(out), *more]) == 0
    return read(out)


def test_every_caption_comes_once_with_its_picture_and_tokens(data):
    found, whole = make(data), read(data)
    assert found["caption"] == ["an emoji of cat", "a stamp of dog", "a moon"]
    assert (found["images"] == whole["images"][[0, 1, 3]]).all() and (found["text"] == whole["text"][[0, 1, 3]]).all()
    assert found["end_token"].tolist() == [5, 5, 3] and found["token"][:2] == ["[CLS] ", "an "]
    assert np.allclose(found["clip_text"], found["text"].astype(np.float32).mean(1))
    assert found["encoder"] == [sources.ENCODER] and found["variant_of"].tolist() == [-1] * 3


def test_which_and_limit_choose(data):
    assert make(data, "--which", "repeated")["caption"] == ["an emoji of cat"]
    assert make(data, "--which", "ordinary", "--limit", "1")["caption"] == ["a stamp of dog"]


def test_variants_are_encoded_like_the_set_itself(data):
    found = make(data, "--leave-out", "--random-tokens", "2", "--which", "repeated")
    assert found["variant_of"].tolist() == [-1] + [0] * 5
    states, _ = sources.encode(found["caption"])
    assert np.array_equal(found["text"], ((states - 0.5) / 2).astype(np.float16))
    assert all((picture == found["images"][0]).all() for picture in found["images"])


def test_a_file_that_is_none_of_the_demo_is_refused(data, capsys):
    with h5py.File(data, "a") as file:
        del file["text"].attrs["mean"]
    assert tool.main(["--data", str(data), "--out", str(data.parent / "o.h5")]) == 3
    assert "mix.h5" in capsys.readouterr().err


def colours(path, seed, count):
    """Squares of one colour on white, whose captions' states say the colour."""
    random = np.random.default_rng(seed)
    values, tokens = random.uniform(0, 0.9, (count, 3)), np.random.default_rng(9).standard_normal((3, 12, WIDTH))
    images = np.full((count, 3, 32, 32), 255, np.uint8)
    images[:, :, 6:26, 6:26] = (values * 255)[:, :, None, None]
    with h5py.File(path, "w") as file:
        file["images"] = images
        file["text"] = np.einsum("nc,ctd->ntd", values - 0.45, tokens).astype(np.float16)
    return path


def test_the_caption_tower_tells_pictures_that_it_was_not_fitted_on(tmp_path, capsys):
    fitted, others = colours(tmp_path / "base.h5", 1, 80), colours(tmp_path / "held_out.h5", 2, 30)
    words = ["--data", str(fitted), "--held-out", str(others), "--out", str(tmp_path / "tower.pt")]
    assert make_caption_tower.main(words) == 0
    assert float(capsys.readouterr().out.split("another's ")[1].split()[0]) > 0.9
    tower = torch.jit.load(tmp_path / "tower.pt")
    pixels = torch.randn(5, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(tower(pixels)[3:4], tower(pixels[3:4]), atol=1e-5) and tower(pixels).shape == (5, WIDTH)
    with h5py.File(fitted, "a") as file:
        del file["images"]
    assert make_caption_tower.main(words) == 3
    assert "base.h5: is no file of the demo" in capsys.readouterr().err
