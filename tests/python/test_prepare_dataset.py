"""tools/prepare_dataset.py against diffusers' own pieces, on random pipelines of a few kilobytes."""
import json
import shutil
import sys

import h5py
import numpy as np
import pytest
import tiny_pipeline
import torch
from conftest import BUILD, ROOT, run
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))

import prepare_dataset as tool
from prepare import encode as prepare_encode
from prepare import pictures as prepare_pictures
from prepare import plan as prepare_plan

SIDE = 16


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline.stable_diffusion(folder / "sd")
    tiny_pipeline.stable_diffusion_xl(folder / "xl")
    return folder


@pytest.fixture
def images(tmp_path):
    return tiny_pipeline.pictures(tmp_path / "images", 12)


def prepare(pipeline, images, out, *more, code=0):
    words = ["--pipeline", pipeline, "--images", images, "--out", out, "--resolution", SIDE, "--held-out", 2, "--validation", 2,
             "--batch-size", 3, "--device", "cpu", *more]
    assert tool.main([str(word) for word in words]) == code
    return out


def refused(capsys, code, *words):
    """The last line on stderr holds all the words; returns nothing."""
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("prepare_dataset: "), said
    for word in words:
        assert str(word) in said[0], said[0]


def read(path):
    with h5py.File(path, "r") as file:
        return {name: data.asstr()[:] if h5py.check_string_dtype(data.dtype) else data[:] for name, data in file.items()}


def near(stored, value):
    """Equal up to the rounding of float16."""
    return np.allclose(stored, value.numpy(), rtol=2e-3, atol=2e-3)


def centre(name, folder, mirrored=False):
    """As diffusers' training scripts: the shorter side resized, mirrored or not, the centre cut out, scaled to -1 .. 1."""
    picture = Image.open(folder / name).convert("RGB")
    scale = SIDE / min(picture.size)
    width, height = (round(s * scale) for s in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.crop((left, top, left + SIDE, top + SIDE))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1, (top, left)


def check_latents(pipeline, data, images):
    for row, name in enumerate(data["file_name"]):
        with torch.no_grad():
            answer = pipeline.vae.encode(centre(name, images)[0]).latent_dist
        assert near(data["latents"][row], answer.mean[0]) and near(data["latent_std"][row], answer.std[0])
    assert data["latents"].dtype == data["latent_std"].dtype == data["text"].dtype == np.float16
    assert len(np.unique(data["latent_std"])) > 100


# ---- values --------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_diffusers_for_sd(pipelines, images, tmp_path):
    out = prepare(pipelines / "sd", images, tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(pipelines / "sd")
    for part, rows in (("train", 8), ("held_out", 2), ("validation", 2)):
        data = read(out / f"{part}.h5")
        assert len(data["latents"]) == rows and "pooled" not in data and "time_ids" not in data
        check_latents(pipeline, data, images)
        with torch.no_grad():
            text, null = pipeline.encode_prompt(list(data["caption"]), "cpu", 1, True)
        assert near(data["text"], text) and near(data["null_text"], null[0])
        assert np.abs(data["text"] - data["null_text"]).max() > 0.1
        for row, name in enumerate(data["file_name"]):
            assert data["caption"][row] == f"a cat number {int(name[:2])}"
        with h5py.File(out / f"{part}.h5") as file:
            assert file["latents"].attrs["scaling_factor"] == 0.18215 and file["latents"].attrs["shift_factor"] == 0
            assert file.attrs["format"] == "memsieve-dataset" and file.attrs["version"] == 1
    names = [name for part in ("train", "held_out", "validation") for name in read(out / f"{part}.h5")["file_name"]]
    assert sorted(names) == [f"{i:02}.png" for i in range(12)]


@pytest.mark.parametrize("force_zeros", [True, False])
def test_values_are_those_of_diffusers_for_sdxl(pipelines, images, tmp_path, force_zeros):
    folder = tmp_path / "xl"
    shutil.copytree(pipelines / "xl", folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    index["force_zeros_for_empty_prompt"] = force_zeros
    (folder / "model_index.json").write_text(json.dumps(index))
    data = read(prepare(folder, images, tmp_path / "out") / "train.h5")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    check_latents(pipeline, data, images)
    # Both encoders' last state but one side by side; the second one's projection.
    with torch.no_grad():
        tokens = pipeline.tokenizer(list(data["caption"]), padding="max_length", max_length=tiny_pipeline.TOKENS,
                                    truncation=True, return_tensors="pt").input_ids
        one = pipeline.text_encoder(tokens, output_hidden_states=True)
        two = pipeline.text_encoder_2(tokens, output_hidden_states=True)
        _, null, _, null_pooled = pipeline.encode_prompt("a cat", device="cpu")
    assert near(data["text"], torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1))
    assert near(data["pooled"], two.text_embeds)
    assert near(data["null_text"], null[0]) and near(data["null_pooled"], null_pooled[0])
    assert (np.abs(data["null_text"]).max() == 0) == force_zeros == (np.abs(data["null_pooled"]).max() == 0)
    for row, name in enumerate(data["file_name"]):
        width, height = Image.open(images / name).size
        want = pipeline._get_add_time_ids((height, width), centre(name, images)[1], (SIDE, SIDE), torch.float32, 10)
        assert np.array_equal(data["time_ids"][row], want[0].numpy())


def test_random_flip_adds_what_the_vae_says_of_the_mirrored_pictures(pipelines, images, tmp_path):
    plain, out = prepare(pipelines / "sd", images, tmp_path / "plain"), prepare(pipelines / "sd", images, tmp_path / "out", "--random-flip")
    pipeline = StableDiffusionPipeline.from_pretrained(pipelines / "sd")
    for part in ("train", "held_out", "validation"):
        before, data = read(plain / f"{part}.h5"), read(out / f"{part}.h5")
        for name, values in before.items():
            assert np.array_equal(data[name], values), name
        assert data.keys() - before.keys() == (set() if part == "validation" else {"latents_flipped", "latent_std_flipped"})
        if part == "validation":
            continue
        for row, name in enumerate(data["file_name"]):
            with torch.no_grad():
                answer = pipeline.vae.encode(centre(name, images, mirrored=True)[0]).latent_dist
            assert near(data["latents_flipped"][row], answer.mean[0]) and near(data["latent_std_flipped"][row], answer.std[0])
        assert np.abs(data["latents_flipped"].astype(float) - data["latents"]).max() > 0.1


def test_force_upcast_keeps_the_vae_in_float32(pipelines, images, tmp_path):
    both = {}
    for dtype in ("float32", "bfloat16"):
        both[dtype] = read(prepare(pipelines / "xl", images, tmp_path / dtype, "--dtype", dtype) / "train.h5")
    assert np.array_equal(both["float32"]["latents"], both["bfloat16"]["latents"])
    assert not np.array_equal(both["float32"]["text"], both["bfloat16"]["text"])
    assert np.allclose(both["float32"]["text"], both["bfloat16"]["text"], atol=0.1)


def test_variant_names_the_weights(tmp_path, images, capsys):
    tiny_pipeline.stable_diffusion(tmp_path / "sd", variant="fp16")
    prepare(tmp_path / "sd", images, tmp_path / "a", code=3)
    refused(capsys, 3, "cannot be loaded", tmp_path / "sd")
    prepare(tmp_path / "sd", images, tmp_path / "b", "--variant", "fp16")


def test_random_crops_follow_the_seed(pipelines, images, tmp_path):
    sets = [read(prepare(pipelines / "xl", images, tmp_path / str(n), "--crop", "random", "--seed", seed) / "train.h5")
            for n, seed in enumerate((1, 1, 2))]
    assert np.array_equal(sets[0]["latents"], sets[1]["latents"])
    corners = [dict(zip(data["file_name"], data["time_ids"][:, 2:4].tolist())) for data in sets]
    assert corners[0] == corners[1]
    common = corners[0].keys() & corners[2].keys()
    assert any(corners[0][name] != corners[2][name] for name in common)
    for name, (top, left) in corners[0].items():
        width, height = Image.open(images / name).size
        scale = SIDE / min(width, height)
        assert 0 <= top <= round(height * scale) - SIDE and 0 <= left <= round(width * scale) - SIDE


def test_thumbnails_show_what_was_encoded(pipelines, images, tmp_path):
    data = read(prepare(pipelines / "sd", images, tmp_path / "out") / "train.h5")
    assert data["thumbnail"].dtype == np.uint8 and data["thumbnail"].shape == (8, 64, 64, 3)
    for row, name in enumerate(data["file_name"]):
        want = (centre(name, images)[0][0].permute(1, 2, 0).numpy() + 1) * 127.5
        small = np.asarray(Image.fromarray(data["thumbnail"][row]).resize((SIDE, SIDE), Image.Resampling.BOX), float)
        assert np.abs(small - want).mean() < 6


# ---- where pictures and captions come from -------------------------------------------------------------------------------


def captions_of(out):
    parts = [read(out / f"{part}.h5") for part in ("train", "held_out", "validation")]
    return {name: caption for data in parts for name, caption in zip(data["file_name"], data["caption"])}


def test_captions_from_text_files(pipelines, tmp_path):
    images = tiny_pipeline.pictures(tmp_path / "images", 6)
    (images / "metadata.jsonl").unlink()
    (images / "deep").mkdir()
    want = {}
    for i, path in enumerate(sorted(images.glob("*.png"))):
        if i == 3:
            path = path.rename(images / "deep" / path.name)
        path.with_suffix(".caption" if i == 4 else ".txt").write_text(f"ein Käfer {i} ✓\n", encoding="utf-8")
        want[path.relative_to(images).as_posix()] = f"ein Käfer {i} ✓"
    tiny_pipeline.picture(99).save(images / "lost.png")
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--held-out", 1, "--validation", 1, code=4)
    assert captions_of(out) == want
    assert [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()] == \
        [{"file_name": "lost.png", "error": "no caption"}]


def test_captions_from_csv(pipelines, images, tmp_path):
    (images / "metadata.jsonl").unlink()
    lines = ["file_name,words"] + [f'{i:02}.png,"one, two {i}"' for i in range(12)]
    (images / "metadata.csv").write_text("\n".join(lines))
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--caption-column", "words")
    assert captions_of(out) == {f"{i:02}.png": f"one, two {i}" for i in range(12)}


def test_transparency_is_put_on_white_and_rotation_undone(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(prepare_pictures.open_picture(tmp_path / "clear.png")).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_pipeline.picture(1, (24, 16)).save(tmp_path / "turned.jpg", exif=exif)
    assert prepare_pictures.open_picture(tmp_path / "turned.jpg").size == (16, 24)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(prepare_pictures.open_picture(tmp_path / "grey.png")).shape == (8, 8, 3)


@pytest.mark.parametrize("lines, words", [
    ("{\"file_name\": \"00.png\"", ["metadata.jsonl:1", "JSON"]),
    ("[1]", ["metadata.jsonl:1", "not an object"]),
    ("\n{\"text\": \"a\"}", ["metadata.jsonl:2", "file_name"]),
    ("{\"file_name\": \"00.png\", \"text\": [\"a\"]}", ["metadata.jsonl:1", "'text'", "--caption-column"]),
    ("{\"file_name\": \"../00.png\", \"text\": \"a\"}", ["../00.png", "out of"]),
    ("", ["metadata.jsonl", "is empty"]),
])
def test_bad_metadata(pipelines, images, tmp_path, capsys, lines, words):
    (images / "metadata.jsonl").write_text(lines)
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, *words)


def test_captions_that_are_not_utf8(pipelines, images, tmp_path, capsys):
    (images / "metadata.jsonl").write_bytes(b'{"file_name": "00.png", "text": "caf\xe9"}\n')
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "UTF-8")


# ---- pictures that cannot be read ----------------------------------------------------------------------------------------


def test_unreadable_pictures_are_skipped_and_listed(pipelines, images, tmp_path, capsys):
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[:len(whole) // 2])
    (images / "05.png").write_text("no picture at all")
    (images / "07.png").unlink()
    Image.new("RGB", (5, 30)).save(images / "09.png")
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    skipped = {entry["file_name"]: entry["error"] for entry in map(json.loads, (out / "skipped.jsonl").open())}
    assert skipped.keys() == {"03.png", "05.png", "07.png", "09.png"}
    assert skipped["07.png"] == "no such file" and "5 x 30" in skipped["09.png"]
    said = capsys.readouterr().err
    assert all(f"skipped {name}: " in said for name in skipped)
    assert captions_of(out).keys() == {f"{i:02}.png" for i in range(12)} - skipped.keys()
    check_latents(StableDiffusionPipeline.from_pretrained(pipelines / "sd"), read(out / "train.h5"), images)
    assert tool.main(["--pipeline", str(pipelines / "sd"), "--images", str(images), "--out", str(out), "--resolution", "16",
                      "--held-out", "2", "--validation", "2"]) == 4


def test_no_readable_picture(pipelines, images, tmp_path, capsys):
    for path in images.glob("*.png"):
        path.write_text("")
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "none of 12 pictures")


# ---- copies and splits ---------------------------------------------------------------------------------------------------


def copies(folder):
    """12 pictures, of which 00, 10 and 11 are one (resized, compressed), and 01 and 02 have one caption."""
    tiny_pipeline.pictures(folder, 12)
    big = Image.open(folder / "00.png").resize((96, 64), Image.Resampling.BICUBIC)
    big.save(folder / "10.jpg", quality=60)
    big.resize((60, 40)).save(folder / "11.png")
    captions = {f"{i:02}.png": f"a cat number {i}" for i in range(10)}
    captions.update({"10.jpg": "another", "11.png": "yet another", "02.png": " A  CAT number 1"})
    (folder / "10.png").unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": c}) + "\n" for n, c in captions.items()))
    return folder


@pytest.mark.parametrize("by, together", [
    ("image", [{"00.png", "10.jpg", "11.png"}]),
    ("caption", [{"01.png", "02.png"}]),
    ("both", [{"00.png", "10.jpg", "11.png"}, {"01.png", "02.png"}]),
])
def test_copies_share_a_group(pipelines, tmp_path, capsys, by, together):
    out = prepare(pipelines / "sd", copies(tmp_path / "images"), tmp_path / "out", "--group-by", by)
    groups = {}
    for part in ("train", "held_out", "validation"):
        data = read(out / f"{part}.h5")
        for name, group in zip(data["file_name"], data["group_id"]):
            groups.setdefault(int(group), set()).add((part, name))
    assert all(len({part for part, _ in group}) == 1 for group in groups.values()), "a group is in two files"
    found = [{name for _, name in group} for group in groups.values() if len(group) > 1]
    assert sorted(map(sorted, found)) == sorted(map(sorted, together))
    assert f"{sum(map(len, together))} are copies in {len(together)} groups" in capsys.readouterr().out


def test_near_pairs_are_all_that_there_are():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.int64).astype(np.uint64)
    flips = [sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 12), replace=False)) for _ in range(240)]
    hashes = np.unique(np.concatenate([base, np.repeat(base, 4) ^ np.array(flips, np.uint64)]))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    for distance in (0, 1, 6, 10):
        want = {(i, j) for i, j in zip(*np.nonzero(apart <= distance)) if i < j}
        found = {tuple(sorted(pair)) for pair in prepare_plan.near_pairs(hashes, distance).tolist()}
        assert found == want and (distance == 0) == (not want)


def test_split_prefers_single_pictures_and_keeps_groups_whole():
    groups = np.repeat(np.arange(40), [5] * 20 + [1] * 20)
    names = [f"{i}.png" for i in range(len(groups))]
    parts = prepare_plan.split(groups, names, 8, 8, 1)
    assert [len(parts[name]) for name in ("train", "held_out", "validation")] == [104, 8, 8]
    assert groups[parts["held_out"]].min() >= 20 and groups[parts["validation"]].min() >= 20
    more = prepare_plan.split(groups, names, 24, 8, 1)
    assert not set(groups[more["held_out"]]) & set(groups[more["train"]]) and len(more["held_out"]) >= 24
    other = prepare_plan.split(groups, names, 8, 8, 2)
    assert set(other["held_out"]) != set(parts["held_out"])
    # A picture that comes in addition moves no other.
    grown = prepare_plan.split(np.append(groups, 40), names + ["new.png"], 8, 8, 1)
    assert len(set(grown["held_out"]) - set(parts["held_out"])) <= 1


def test_too_much_put_aside(pipelines, images, tmp_path, capsys):
    prepare(pipelines / "sd", images, tmp_path / "out", "--held-out", 5, code=2)
    refused(capsys, 2, "more than half of the 12", "--held-out")


# ---- stopping and going on -----------------------------------------------------------------------------------------------


def stop_after(monkeypatch, calls):
    """Ctrl-C at the call of the VAE after so many."""
    real, left = prepare_encode.Encoder.latents, [calls]

    def latents(self, pictures):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, pictures)
    monkeypatch.setattr(prepare_encode.Encoder, "latents", latents)
    return lambda: monkeypatch.setattr(prepare_encode.Encoder, "latents", real)


@pytest.mark.parametrize("calls", [0, 1, 3, 4])
def test_interrupted_and_resumed_is_uninterrupted(pipelines, images, tmp_path, capsys, monkeypatch, calls):
    monkeypatch.setattr(tool, "FLUSH_EVERY", 1)
    (images / "03.png").write_text("broken")
    whole = prepare(pipelines / "xl", images, tmp_path / "whole", code=4)
    resumed = tmp_path / "resumed"
    undo = stop_after(monkeypatch, calls)
    prepare(pipelines / "xl", images, resumed, code=130)
    undo()
    assert "--resume" in capsys.readouterr().err and not list(resumed.glob("*.h5"))
    prepare(pipelines / "xl", images, resumed, code=2)
    refused(capsys, 2, "unfinished set", "--resume")
    prepare(pipelines / "xl", images, resumed, "--resume", "--seed", 5, code=2)
    refused(capsys, 2, "--seed 0, not 5")
    seen = []
    real = prepare_encode.Encoder.latents
    monkeypatch.setattr(prepare_encode.Encoder, "latents", lambda self, p: (seen.append(len(p)), real(self, p))[1])
    prepare(pipelines / "xl", images, resumed, "--resume", code=4)
    assert sum(seen) == 11 - sum([2, 2, 3, 3, 1][:calls]), "work that was done is not done again"
    for part in ("train", "held_out", "validation"):
        want, got = read(whole / f"{part}.h5"), read(resumed / f"{part}.h5")
        assert want.keys() == got.keys() and all(np.array_equal(want[name], got[name]) for name in want)
    assert (whole / "skipped.jsonl").read_text() == (resumed / "skipped.jsonl").read_text()
    assert not (resumed / ".partial").exists()


def test_interrupted_reading_goes_on(pipelines, images, tmp_path, monkeypatch):
    whole = prepare(pipelines / "sd", images, tmp_path / "whole")
    real, looked = prepare_pictures.look, []

    def look(path):
        if len(looked) == 7:
            raise KeyboardInterrupt
        looked.append(path.name)
        return real(path)
    monkeypatch.setattr(prepare_pictures, "look", look)
    prepare(pipelines / "sd", images, tmp_path / "out", "--workers", 1, code=130)
    with open(tmp_path / "out" / ".partial" / "scan.jsonl", "a") as file:
        file.write('{"size": [1')  # as a power cut leaves it
    looked.clear()
    monkeypatch.setattr(prepare_pictures, "look", lambda path: (looked.append(path.name), real(path))[1])
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--resume")
    assert 0 < len(looked) < 12
    want, got = read(whole / "train.h5"), read(out / "train.h5")
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_stop_between_renames_loses_nothing(pipelines, images, tmp_path, monkeypatch):
    whole = prepare(pipelines / "sd", images, tmp_path / "whole")
    real, left = tool.os.replace, [1]

    def replace(source, target):
        if str(target).endswith("out/validation.h5") and left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        real(source, target)
    monkeypatch.setattr("os.replace", replace)
    prepare(pipelines / "sd", images, tmp_path / "out", code=130)
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["held_out.h5"]
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--resume")
    for part in ("train", "held_out", "validation"):
        want, got = read(whole / f"{part}.h5"), read(out / f"{part}.h5")
        assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_finished_set_is_never_overwritten(pipelines, images, tmp_path, capsys):
    out = prepare(pipelines / "sd", images, tmp_path / "out")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    prepare(pipelines / "sd", images, out)
    assert "up to date" in capsys.readouterr().out
    for change, words in ((("--group-by", "caption"), ["--group-by image, not caption"]), (("--dtype", "float16"), ["--dtype"])):
        prepare(pipelines / "sd", images, out, *change, code=2)
        refused(capsys, 2, "made with", *words)
    prepare(pipelines / "xl", images, out, code=2)
    refused(capsys, 2, "another pipeline")
    (images / "metadata.jsonl").write_text((images / "metadata.jsonl").read_text().replace("number 5", "number five"))
    prepare(pipelines / "sd", images, out, code=2)
    refused(capsys, 2, "other pictures or captions")
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "train.h5").write_text("precious")
    prepare(pipelines / "sd", images, tmp_path / "foreign", code=2)
    refused(capsys, 2, "was not made by this program")


def test_a_picture_that_changes_between_the_passes(pipelines, images, tmp_path, capsys, monkeypatch):
    stop_after(monkeypatch, 0)
    prepare(pipelines / "sd", images, tmp_path / "out", code=130)
    capsys.readouterr()
    for path in images.glob("*.png"):
        tiny_pipeline.picture(0, (30, 30)).save(path)
    prepare(pipelines / "sd", images, tmp_path / "out", "--resume", code=3)
    refused(capsys, 3, "30 x 30 now")


# ---- prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_prompts(pipelines, tmp_path, capsys, kind):
    (tmp_path / "prompts.txt").write_text("a cat\n\n a dog ✓ \n", encoding="utf-8")
    words = ["--pipeline", pipelines / kind, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out", "--resolution", 16]
    words = [str(word) for word in words]
    assert tool.main(words) == 0
    data = read(tmp_path / "out" / "prompts.h5")
    assert list(data["caption"]) == ["a cat", "a dog ✓"] and data["latents"].shape == (2, 4, 8, 8)
    pipeline = (StableDiffusionPipeline, StableDiffusionXLPipeline)[kind == "xl"].from_pretrained(pipelines / kind)
    with torch.no_grad():
        if kind == "xl":
            text, _, pooled, _ = pipeline.encode_prompt(["a cat", "a dog ✓"], device="cpu")
            assert near(data["pooled"], pooled) and data["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
        else:
            text = pipeline.encode_prompt(["a cat", "a dog ✓"], "cpu", 1, False)[0]
    assert near(data["text"], text)
    assert tool.main(words) == 0 and "up to date" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("a bird\n")
    assert tool.main(words) == 2
    refused(capsys, 2, "other prompts")
    (tmp_path / "prompts.txt").write_text("\n")
    assert tool.main(words) == 3
    refused(capsys, 3, "no prompt")


# ---- what is refused -----------------------------------------------------------------------------------------------------


def broken(pipelines, tmp_path, name, change):
    folder = tmp_path / "broken"
    shutil.copytree(pipelines / "sd", folder)
    config = json.loads((folder / name).read_text())
    config.update(change)
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name, change, words", [
    ("model_index.json", {"_class_name": "FluxPipeline"}, ["FluxPipeline", "StableDiffusionXLPipeline"]),
    ("vae/config.json", {"_class_name": "AutoencoderTiny"}, ["AutoencoderTiny", "AutoencoderKL"]),
    ("vae/config.json", {"latents_mean": [0, 0, 0, 0]}, ["latents_mean"]),
])
def test_unknown_pipelines(pipelines, images, tmp_path, capsys, name, change, words):
    prepare(broken(pipelines, tmp_path, name, change), images, tmp_path / "out", code=3)
    refused(capsys, 3, *words)


def test_no_pipeline(images, tmp_path, capsys):
    prepare(tmp_path, images, tmp_path / "out", code=3)
    refused(capsys, 3, "model_index.json", "--pipeline")


def test_torn_weights(pipelines, images, tmp_path, capsys):
    folder = broken(pipelines, tmp_path, "vae/config.json", {})
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    prepare(folder, images, tmp_path / "out", code=3)
    refused(capsys, 3, str(folder), "cannot be loaded")


@pytest.mark.parametrize("options, words", [
    (["--resolution", 17], ["--resolution 17", "divided by 2"]),
    (["--device", "cuda:77"], ["--device cuda:77"]),
    (["--images", "/nowhere"], ["/nowhere", "no such folder"]),
])
def test_wrong_options(pipelines, images, tmp_path, capsys, options, words):
    code = 3 if "--images" in options else 2
    prepare(pipelines / "sd", images, tmp_path / "out", *options, code=code)
    refused(capsys, code, *words)


@pytest.mark.parametrize("options", [["--batch-size", "0"], ["--hash-distance", "11"], ["--crop", "left"]])
def test_options_out_of_range(pipelines, images, tmp_path, options):
    with pytest.raises(SystemExit) as stop:
        prepare(pipelines / "sd", images, tmp_path / "out", *options)
    assert stop.value.code == 2


def test_nothing_to_do(pipelines, tmp_path, capsys):
    assert tool.main(["--pipeline", str(pipelines / "sd"), "--out", str(tmp_path)]) == 2
    refused(capsys, 2, "--images", "--prompts")


def test_an_answer_that_is_not_finite_names_the_picture(pipelines, images, tmp_path, capsys, monkeypatch):
    real = prepare_encode.Encoder.latents

    def latents(self, pictures):
        mean, std = real(self, pictures)
        mean[1] = np.inf
        return mean, std
    monkeypatch.setattr(prepare_encode.Encoder, "latents", latents)
    prepare(pipelines / "sd", images, tmp_path / "out", "--dtype", "bfloat16", code=3)
    refused(capsys, 3, ".png: /latents", "--dtype float32")


def test_memory_does_not_grow_with_the_set():
    """Only a window of results waits, however many items there are."""
    from concurrent.futures import ThreadPoolExecutor
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield i
    with ThreadPoolExecutor(2) as executor:
        results = prepare_pictures.in_order(executor, lambda i: i * i, items(), 5)
        for i in range(100):
            assert next(results) == i * i and len(taken) <= i + 6


# ---- the trainer reads it ------------------------------------------------------------------------------------------------

CONFIG = """output_dir: run
device: cpu
data: {{train: {out}/train.h5, held_out: {out}/held_out.h5, validation: {out}/validation.h5}}
model: {{pretrained: {pipeline}/unet}}
max_train_steps: 2
train_batch_size: 2
validation: {{every: 1, draws: 1}}
sieve:
  filters: {{magnitude: {{scale: log}}, prediction_error: {{scale: log}}}}
  held_out: {{rows: 1}}
"""


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_trainer_takes_the_files(pipelines, images, tmp_path, kind):
    out = prepare(pipelines / kind, images, tmp_path / "out")
    (tmp_path / "run.yaml").write_text(CONFIG.format(out=out, pipeline=pipelines / kind))
    train = BUILD / "trainer" / "memsieve-train"
    dry = run(train, "--config", "run.yaml", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    result = run(train, "--config", "run.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# ---- what people have in their folders -----------------------------------------------------------------------------------


def write_metadata(images, lines, mark=""):
    (images / "metadata.jsonl").write_text(mark + "".join(json.dumps(line) + "\n" for line in lines))


def metadata(images):
    return [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]


def skipped(out):
    return {entry["file_name"]: entry["error"] for entry in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(images, kind):
    lines = metadata(images)
    write_metadata(images, lines, "\ufeff")
    if kind != "jsonl":
        (images / "metadata.jsonl").unlink()
    if kind == "csv":
        (images / "metadata.csv").write_text("\ufefffile_name,text\n" + "".join(f"{e['file_name']},{e['text']}\n" for e in lines))
    if kind == "txt":
        for entry in lines:
            (images / entry["file_name"]).with_suffix(".txt").write_text("\ufeff" + entry["text"])
    assert {s.name: s.caption for s in prepare_pictures.find(images)} == {e["file_name"]: e["text"] for e in lines}


def test_captions_that_are_none_or_cannot_be_stored_are_skipped_and_listed(pipelines, images, tmp_path, capsys):
    lines = metadata(images)
    lines[0]["text"], lines[1]["text"], lines[2]["text"], lines[3]["text"] = None, "  ", "a \0 cat", "a \ud83d cat"
    write_metadata(images, lines)
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert skipped(out) == {"00.png": "no caption", "01.png": "no caption", "02.png": "its caption holds a NUL or half a character",
                            "03.png": "its caption holds a NUL or half a character"}
    assert sum(len(read(out / f"{part}.h5")["caption"]) for part in ("train", "held_out", "validation")) == 8


def test_a_column_that_no_line_has(pipelines, images, tmp_path, capsys):
    prepare(pipelines / "sd", images, tmp_path / "out", "--caption-column", "label", code=3)
    refused(capsys, 3, "metadata.jsonl", "no line has a 'label'", "--caption-column")


def test_a_text_file_of_another_encoding_is_skipped_and_named(pipelines, images, tmp_path, capsys):
    for entry in metadata(images):
        (images / entry["file_name"]).with_suffix(".txt").write_text(entry["text"])
    (images / "metadata.jsonl").unlink()
    (images / "05.txt").write_bytes("Käse".encode("latin-1"))
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert skipped(out) == {"05.png": "05.txt is not UTF-8"}


def test_a_csv_that_is_none(pipelines, images, tmp_path, capsys):
    (images / "metadata.jsonl").unlink()
    (images / "metadata.csv").write_text("file_name,text\n00.png," + "x" * 200000 + "\n")
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "metadata.csv", "is not CSV")


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_greyscale_of_more_than_8_bits_is_skipped(pipelines, images, tmp_path, dtype, mode, capsys):
    ramp = np.linspace(0, 1 if dtype == np.float32 else 65535, 32 * 32).reshape(32, 32).astype(dtype)
    lines = metadata(images)
    lines[4]["file_name"] = "deep.tif"
    Image.fromarray(ramp).save(images / "deep.tif")
    assert Image.open(images / "deep.tif").mode == mode
    write_metadata(images, lines)
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert "more than 8 bits" in skipped(out)["deep.tif"]


def test_large_groups_of_copies_do_not_swallow_the_training_set():
    names = [f"{i}" for i in range(1040)]
    groups = np.concatenate([np.arange(100), np.repeat(np.arange(100, 120), 2), np.repeat([120], 200), np.repeat([121], 700)])
    for seed in range(5):
        parts = prepare_plan.split(groups, names, 64, 64, seed)
        assert [len(parts[name]) for name in ("held_out", "validation", "train")] == [64, 64, 912]
    for one in (np.zeros(1040, int), np.repeat([0, 1], [700, 340])):
        with pytest.raises(prepare_pictures.OptionError, match="left to train on; lower --held-out"):
            prepare_plan.split(one, names, 64, 64, 0)
