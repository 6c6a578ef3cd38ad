"""memsieve prepare: what it refuses, in one line."""
import numpy as np
import pytest
from memsieve.prepare import encode as prepare_encode
from prepared import broken, images, pipelines, prepare, refused, tool  # noqa: F401 (fixtures among them)


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
