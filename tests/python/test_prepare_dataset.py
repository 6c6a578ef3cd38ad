"""memsieve prepare against diffusers' own pieces, on random pipelines of a few kilobytes."""
import json
import shutil

import h5py
import numpy as np
import pytest
import tiny_pipeline
import torch
from PIL import Image
from conftest import BUILD, ROOT, run
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from memsieve.prepare import encode as prepare_encode
from memsieve.prepare import pictures as prepare_pictures
from prepared import SIDE, images, pipelines, prepare, read, refused, tool  # noqa: F401 (fixtures among them)


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
            for name, stored in file.items():
                assert stored.fletcher32 and h5py.check_string_dtype(stored.dtype) is None, name
                if name in ("latents", "latent_std", "text", "thumbnail"):
                    assert stored.chunks == (1, *stored.shape[1:])
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
    with h5py.File(tmp_path / "out" / "prompts.h5") as file:
        assert file["latents"].id.get_storage_size() == 0 and not file["latents"][:].any()
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
