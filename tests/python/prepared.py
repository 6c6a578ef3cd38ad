"""What the tests of memsieve prepare share: tiny pipelines, pictures, a call of the tool and what it wrote."""
import json
import shutil

import h5py
import pytest
import tiny_pipeline
from memsieve import hdf5_rows
from memsieve.commands import prepare_dataset as tool

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
    assert len(said) == 1 and said[0].startswith("memsieve prepare: "), said
    for word in words:
        assert str(word) in said[0], said[0]


def read(path):
    """{name: rows}, texts as lists of words."""
    with h5py.File(path, "r") as file:
        texts = {name.removesuffix("_offsets") for name in file if name.endswith("_offsets")}
        return ({name: data[:] for name, data in file.items() if not name.endswith(("_offsets", "_bytes"))}
                | {name: hdf5_rows.read_texts(file, name) for name in texts})


def broken(pipelines, tmp_path, name, change):
    folder = tmp_path / "broken"
    shutil.copytree(pipelines / "sd", folder)
    config = json.loads((folder / name).read_text())
    config.update(change)
    (folder / name).write_text(json.dumps(config))
    return folder
