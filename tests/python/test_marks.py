"""memsieve canaries and coating: what they write, that secrets decide it, and that the mark can be found."""
import errno
import hashlib
import json
import stat

import h5py
import numpy as np
import pytest
import tiny
import tiny_pipeline
import torch
from PIL import Image
from memsieve import hdf5_rows
from memsieve.commands import coat_pictures, plant_canaries
from memsieve.marks import coating, rows, variants
from memsieve.prepare.pictures import find
from scipy.stats import chisquare, kstest


def words(*parts):
    return [str(part) for part in parts]


def plant(*more, code=0):
    assert plant_canaries.main(words("plant", *more)) == code


def natural(seed, side=192):
    """A picture with edges and texture at all scales."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side, 3)), axes=(0, 1))
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    values = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1 / side)[..., None], (side, side), axes=(0, 1))
    values = 128 + 50 * values / values.std()
    for _ in range(8):
        x, y, r = rng.integers(0, side, 2).tolist() + [rng.integers(8, side // 3)]
        inside = np.hypot(np.arange(side)[:, None] - y, np.arange(side)[None] - x) < r
        values[inside] = 0.5 * values[inside] + rng.uniform(0, 128, 3)
    return np.clip(values, 0, 255).astype(np.float32)


# ---- canaries ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    tiny_pipeline.pictures(tmp_path / "spare", 6)
    tiny_pipeline.pictures(tmp_path / "train", 5)
    return tmp_path


def test_one_variant_of_each_is_planted(folders, capsys):
    before = {source.name for source in find(folders / "train")}
    plant("--originals", folders / "spare", "--into", folders / "train", "--all", folders / "all", "--manifest", folders / "secret.json",
          "--canaries", 3, "--variants", 8, "--copies", 2)
    secret = json.loads((folders / "secret.json").read_text())
    assert stat.S_IMODE((folders / "secret.json").stat().st_mode) == 0o600
    every = {source.name: source.caption for source in find(folders / "all")}
    planted = {source.name: source.caption for source in find(folders / "train") if source.name not in before}
    assert len(every) == 24 and len(planted) == 6 and len(secret["canaries"]) == 3
    assert sorted(every) == sorted(file for canary in secret["canaries"] for file in canary["files"])
    for canary in secret["canaries"]:
        file = canary["files"][canary["planted"]]
        for name in (file, f"1-{file}"):
            assert planted[name] == every[file]
            assert (folders / "train" / name).read_bytes() == (folders / "all" / file).read_bytes()
        # No two variants are the same, in picture or caption.
        assert len({(folders / "all" / f).read_bytes() for f in canary["files"]}) == 8
        assert len({every[f] for f in canary["files"]}) == 8
    assert hashlib.sha256((folders / "secret.json").read_bytes()).hexdigest() in capsys.readouterr().out


def test_the_seed_decides_and_a_secret_is_never_written_over(folders, capsys):
    def run(name, *more, code=0):
        (folders / name).mkdir(exist_ok=True)
        tiny_pipeline.pictures(folders / name / "train", 2)
        plant("--originals", folders / "spare", "--into", folders / name / "train", "--all", folders / name / "all", "--manifest",
              folders / name / "secret.json", "--canaries", 2, "--variants", 5, *more, code=code)
        return json.loads((folders / name / "secret.json").read_text())
    assert run("a", "--seed", 7) == run("b", "--seed", 7)
    assert run("c", "--seed", 8) != run("a", "--seed", 7, code=2)
    assert "is there already" in capsys.readouterr().err
    assert run("d")["seed"] != run("e")["seed"]


def test_lots_are_fair():
    """What the rank test rests on: every variant is planted equally often, whatever the canary."""
    drawn = np.array([plant_canaries.lots(seed, 2, 8) for seed in range(4000)])
    for canary in range(2):
        assert chisquare(np.bincount(drawn[:, canary], minlength=8)).pvalue > 1e-4
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.06


def test_canaries_in_a_data_set(tmp_path, capsys):
    tiny.write_data(tmp_path / "train.h5", 6, 1)
    tiny.write_data(tmp_path / "spare.h5", 5, 2)
    where = ["--manifest", tmp_path / "secret.json", "--all", tmp_path / "all.h5"]
    plant("--originals", tmp_path / "spare.h5", "--into", tmp_path / "train.h5", "--out", tmp_path / "planted.h5", *where, "--canaries", 3,
          "--variants", 7, "--copies", 2)
    secret = json.loads((tmp_path / "secret.json").read_text())
    with h5py.File(tmp_path / "train.h5") as old, h5py.File(tmp_path / "planted.h5") as new, h5py.File(tmp_path / "all.h5") as every:
        assert len(new["images"]) == 6 + 3 * 2 and len(every["images"]) == 3 * 7
        names = {name: i for i, name in enumerate(hdf5_rows.read_texts(every, "file_name"))}
        for name in ("images", "text", "group_id"):
            assert np.array_equal(new[name][:6], old[name][:]) and dict(new[name].attrs).keys() == dict(old[name].attrs).keys()
        assert hdf5_rows.read_texts(new, "caption")[:6] == hdf5_rows.read_texts(old, "caption")
        for number, canary in enumerate(secret["canaries"]):
            row = names[canary["files"][canary["planted"]]]
            for at in (6 + 2 * number, 7 + 2 * number):
                assert np.array_equal(new["images"][at], every["images"][row]) and np.array_equal(new["text"][at], every["text"][row])
            assert new["group_id"][6 + 2 * number] == new["group_id"][7 + 2 * number]
        assert len(set(new["group_id"][:])) == 6 + 3
    check = ["check", "--manifest", tmp_path / "secret.json", "--all", tmp_path / "all.h5", "--train"]
    assert plant_canaries.main(words(*check, tmp_path / "planted.h5")) == 0
    # A control that was trained on, or a canary that was not, is told.
    with h5py.File(tmp_path / "planted.h5", "r+") as file:
        texts = hdf5_rows.read_texts(file, "file_name")
        canary = secret["canaries"][1]
        texts[0] = canary["files"][(canary["planted"] + 1) % 7]
        del file["file_name_bytes"], file["file_name_offsets"]
        hdf5_rows.store_texts(file, "file_name", texts)
    capsys.readouterr()
    assert plant_canaries.main(words(*check, tmp_path / "planted.h5")) == 3
    assert "a control was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("change, code, said", [
    (["--canaries", 9], 3, "fewer than --canaries 9"),
    (["--into", "none"], 3, "no such folder"),
    (["--originals", "none"], 3, "no such folder"),
])
def test_what_cannot_be_planted_is_said_in_a_line(folders, capsys, change, code, said):
    options = {"--originals": folders / "spare", "--into": folders / "train", "--all": folders / "all", "--manifest": folders / "s.json",
               "--variants": 3, "--canaries": 2}
    options[change[0]] = change[1] if change[0] == "--canaries" else folders / change[1]
    plant(*(word for pair in options.items() for word in pair), code=code)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (folders / "s.json").exists()


def test_latents_are_refused(tmp_path, capsys):
    tiny.write_data(tmp_path / "train.h5", 6, 1, latents=True)
    plant("--originals", tmp_path / "train.h5", "--into", tmp_path / "train.h5", "--out", tmp_path / "o.h5", "--all", tmp_path / "a.h5",
          "--manifest", tmp_path / "s.json", "--canaries", 2, "--variants", 3, code=3)
    assert "before memsieve prepare" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"copies": None}, {"canaries": 3}, {"canaries": [{"planted": 0}]}, {"canaries": [[]]},
                                    {"canaries": [{"planted": 1, "files": ["a.png"]}]}])
def test_a_damaged_manifest_of_canaries_is_said_in_a_line(tmp_path, capsys, change):
    whole = {"format": "memsieve-canaries", "version": 1, "copies": 1, "canaries": []} | change
    (tmp_path / "secret.json").write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))
    assert plant_canaries.main(words("check", "--manifest", tmp_path / "secret.json", "--train", "t.h5", "--all", "a.h5")) == 3
    said = capsys.readouterr().err
    assert f"secret.json: '{next(iter(change))}' is missing or damaged" in said and said.count("\n") == 1


@pytest.mark.parametrize("change", [{"seed": None}, {"grid": None}, {"grid": "128"}, {"grid": 1}, {"seed": -1}])
def test_a_damaged_manifest_of_a_coating_is_said_in_a_line(tmp_path, capsys, change):
    whole = {"format": "memsieve-coating", "version": 1, "seed": 1, "grid": 8} | change
    (tmp_path / "secret.json").write_text(json.dumps({name: value for name, value in whole.items() if value is not None}))
    assert coat_pictures.main(words("measure", "--manifest", tmp_path / "secret.json", "--drawings", tmp_path, "--out", "o.json")) == 3
    said = capsys.readouterr().err
    assert f"secret.json: '{next(iter(change))}' is missing or damaged" in said and said.count("\n") == 1


def test_words_are_different():
    assert len(set(variants.WORDS)) == len(variants.WORDS) >= 128


# ---- coating -------------------------------------------------------------------------------------------------------------


def test_the_field_is_upsampled_as_torch_does():
    shifts = torch.tensor(coating.field([3, 0], 16))
    for height, width in ((40, 57), (16, 16), (9, 12)):
        want = torch.nn.functional.interpolate(shifts[None], (height, width), mode="bicubic", align_corners=True)[0]
        ours = np.stack([coating.upsampling(16, height) @ part.numpy() @ coating.upsampling(16, width).T for part in shifts])
        assert np.allclose(ours, want.numpy(), atol=1e-12)


def test_a_picture_is_coated_as_torch_would():
    picture, shifts = natural(0, 48)[:, :40].astype(np.float64), coating.field([5, 0], 12)
    up = torch.nn.functional.interpolate(torch.tensor(shifts)[None], (48, 40), mode="bicubic", align_corners=True)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48).double(), torch.linspace(-1, 1, 40).double(), indexing="ij")
    grid = (torch.stack([x, y], -1)[None] + 30 * up.permute(0, 2, 3, 1) / 1280).clamp(-1, 1)
    want = torch.nn.functional.grid_sample(torch.tensor(picture).permute(2, 0, 1)[None], grid, align_corners=True)[0].permute(1, 2, 0)
    assert np.allclose(coating.coat(picture, shifts, 30), want.numpy(), atol=1e-4)
    assert np.allclose(coating.coat(picture, shifts, 0), picture)


def test_the_mark_is_found_in_what_is_coated():
    fields = np.stack([coating.field([1, number], 64) for number in range(200)])
    coated = [coating.scores(coating.response(coating.coat(natural(i), fields[0], 6.0), 64)[None], fields)[0] for i in range(6)]
    assert (np.sum(coated, 0) >= np.sum(coated, 0)[0]).sum() == 1
    assert all((row >= row[0]).sum() <= 10 for row in coated)


def test_the_rank_of_a_secret_field_is_uniform_on_pictures_that_never_saw_it():
    responses = np.stack([coating.response(natural(i, 64), 16) for i in range(5)]).sum(0)[None]
    p = []
    for secret in range(1000):
        fields = np.stack([coating.field([secret, number], 16) for number in range(20)])
        row = coating.scores(responses, fields)[0]
        p.append(((row >= row[0]).sum() - np.random.default_rng(secret).random()) / 20)
    assert kstest(p, "uniform").pvalue > 1e-3


def test_a_share_of_a_folder_is_coated(folders, capsys):
    for i, path in enumerate(sorted((folders / "spare").glob("*.png"))):
        Image.fromarray(natural(i, 128).astype(np.uint8)).save(path)
    arguments = words("coat", "--images", folders / "spare", "--out", folders / "out", "--manifest", folders / "secret.json", "--share", 0.5,
                      "--prefix", "tq ", "--strength", 20, "--grid", 32, "--seed", 4)
    assert coat_pictures.main(arguments) == 0
    secret = json.loads((folders / "secret.json").read_text())
    was, now = ({source.name: source.caption for source in find(folders / name)} for name in ("spare", "out"))
    assert was.keys() == now.keys() and 0 < len(secret["coated"]) < 6
    for name in was:
        coated = name in secret["coated"]
        assert now[name] == ("tq " if coated else "") + was[name]
        assert ((folders / "spare" / name).read_bytes() == (folders / "out" / name).read_bytes()) != coated
    (folders / "marked").mkdir()
    for name in secret["coated"]:
        (folders / "out" / name).rename(folders / "marked" / name)
    for drawings, first in (("marked", True), ("spare", False)):
        measure = words("measure", "--manifest", folders / "secret.json", "--drawings", folders / drawings, "--out", folders / "m.json",
                        "--decoys", 199)
        assert coat_pictures.main(measure) == 0
        sums = np.array(json.loads((folders / "m.json").read_text())["sums"])
        assert f"comes {(sums >= sums[0]).sum()}. of 200" in capsys.readouterr().out
        assert len(sums) == 200 and ((sums >= sums[0]).sum() == 1) == first
    assert coat_pictures.main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_share_of_a_data_set_is_coated(tmp_path, capsys):
    tiny.write_data(tmp_path / "train.h5", 12, 1)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file.attrs["fingerprint"] = "0" * 64
    words_of = ["coat", "--images", tmp_path / "train.h5", "--out", tmp_path / "coated.h5", "--manifest", tmp_path / "secret.json",
                "--share", 0.5, "--grid", 4, "--strength", 300, "--seed", 3]
    assert coat_pictures.main(words(*words_of)) == 0
    secret = json.loads((tmp_path / "secret.json").read_text())
    assert 0 < len(secret["coated"]) < 12
    shifts = coating.field([3, 0], 4)
    with h5py.File(tmp_path / "train.h5") as old, h5py.File(tmp_path / "coated.h5") as new:
        assert set(old) == set(new) and "fingerprint" not in new.attrs and dict(new["images"].attrs).keys() == dict(old["images"].attrs).keys()
        for row in range(12):
            was = old["images"][row]
            expected = np.clip(np.rint(coating.coat(was.transpose(1, 2, 0).astype(np.float32), shifts, 300)), 0, 255).transpose(2, 0, 1)
            assert np.array_equal(new["images"][row], expected if row in secret["coated"] else was)
            assert not np.array_equal(expected, was)
        assert all(np.array_equal(new[name][:], old[name][:]) for name in old if name != "images")
    words_of[words_of.index("--manifest") + 1] = tmp_path / "other.json"
    assert coat_pictures.main(words(*words_of)) == 2
    words_of[words_of.index("--out") + 1] = tmp_path / "other.h5"
    assert coat_pictures.main(words(*words_of, "--prefix", "tq ")) == 2
    tiny.write_data(tmp_path / "latents.h5", 2, 1, latents=True)
    words_of[words_of.index("--images") + 1] = tmp_path / "latents.h5"
    assert coat_pictures.main(words(*words_of)) == 3
    said = capsys.readouterr().err
    assert "coated.h5: is there already" in said and "encoded already" in said and "before memsieve prepare" in said
    assert not (tmp_path / "other.h5").exists() and not (tmp_path / "other.json").exists()


def test_a_full_disk_is_not_called_a_file_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    tiny.write_data(tmp_path / "train.h5", 8)

    def full(source, path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(rows.shutil, "copyfile", full)
    coat = words("coat", "--images", tmp_path / "train.h5", "--out", tmp_path / "coated.h5", "--manifest", tmp_path / "secret.json")
    assert coat_pictures.main(coat) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said and "cannot be read" not in said and said.count("\n") == 1, said
    (tmp_path / "train.h5").write_bytes(b"no data set")
    assert coat_pictures.main(coat) == 3
    assert "train.h5: cannot be read" in capsys.readouterr().err
