"""diffusers' own training scripts with the lines of docs/integrations.md, on tiny random pipelines. The scripts are no part of diffusers'
package: MEMSIEVE_DIFFUSERS names a checkout of it."""
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline
from conftest import ROOT, clean_environment
from memsieve import ledger

SCRIPTS = Path(os.environ.get("MEMSIEVE_DIFFUSERS", "")) / "examples" / "text_to_image"
DOC = (ROOT / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"```python\n# (before|in place of): (.*?)\n(.*?)```", DOC, re.S)
CLIPPED = {"train_text_to_image_lora": "params_to_clip", "train_text_to_image": "unet.parameters()"}
NEEDED = ("datasets", "torchvision")

needs_scripts = pytest.mark.skipif("MEMSIEVE_DIFFUSERS" not in os.environ or any(importlib.util.find_spec(name) is None for name in NEEDED),
                                   reason="MEMSIEVE_DIFFUSERS names no checkout of diffusers, or datasets or torchvision is not installed")


def blocks_of(name):
    """[(where, line, lines)]: of the LoRA script the first of each place, of the other one the last."""
    chosen = {}
    for where, line, lines in BLOCKS if name == "train_text_to_image" else reversed(BLOCKS):
        chosen[line.replace("params_to_clip", CLIPPED[name])] = where, lines
    return [(where, line, lines) for line, (where, lines) in chosen.items()]


def edited(text, name):
    for where, line, lines in blocks_of(name):
        places = re.findall(rf"^ *{re.escape(line)}.*\n", text, re.M)
        assert len(places) == 1, f"{line}: stands in {name}.py {len(places)} times"
        indent = re.match(" *", places[0])[0]
        text = text.replace(places[0], textwrap.indent(lines, indent) + (places[0] if where == "before" else ""))
    return text


def test_every_line_has_its_place():
    assert len(BLOCKS) == 8
    for name in CLIPPED:
        assert len(blocks_of(name)) == 6 and {where for where, _, _ in blocks_of(name)} == {"before", "in place of"}


@needs_scripts
@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("more", [[], ["--snr_gamma=5"]])
def test_script_with_the_lines_of_the_documentation(tmp_path, name, more):
    tiny_pipeline.stable_diffusion(tmp_path / "model")
    tiny_pipeline.pictures(tmp_path / "pictures", 12)
    (tmp_path / "script.py").write_text(edited((SCRIPTS / f"{name}.py").read_text(), name))
    words = ["--pretrained_model_name_or_path", tmp_path / "model", "--train_data_dir", tmp_path / "pictures", "--resolution=16",
             "--train_batch_size=4", "--gradient_accumulation_steps=2", "--max_train_steps=4", "--output_dir", tmp_path / "out", "--seed=1",
             "--learning_rate=1e-2", "--checkpointing_steps=2", "--caption_column=text", *more]
    done = subprocess.run([sys.executable, "script.py", *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env=clean_environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"), CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr[-3000:]
    visits = ledger.visits(tmp_path / "out")
    # 12 pictures in batches of 4, two of them a step: three micro-batches an epoch, the third a step of its own.
    assert sorted(np.unique(visits["step"])) == [0, 1, 2, 3] and set(visits["sample"]) == set(range(12))
    assert [int((visits["step"] == step).sum()) for step in range(4)] == [8, 4, 8, 4]
    assert np.isfinite(visits["raw_start_gap"]).any(), "the starting model was never asked"
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
