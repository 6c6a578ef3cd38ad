"""The base models that scenarios with another kind of prediction start from: trained as the demo's own, stored in float16."""

import subprocess
import sys
from pathlib import Path

import make_demo_data as maker
import yaml
from memsieve.reports.files import replace_file
from memsieve.reports.program import InputError

from . import runs
from .checkpoints import latest_checkpoint
from .scenarios import BASES, BATCH

TO_HALF = Path(maker.__file__).with_name("to_half.py")


def config_of(place, name):
    config = yaml.safe_load((place.root / "configs" / "demo_base.yaml").read_text())
    folder = place.runs / "bases" / name
    return config | BASES[name] | {"output_dir": str(folder / "run"), "train_batch_size": BATCH // place.processes}


def make(place, name):
    """Trains the base `name` to its end, or goes on with it, and writes models/demo_base_NAME."""
    target = place.root / "models" / f"demo_base_{name}"
    if (target / "config.json").exists():
        print(f"detection: {target.relative_to(place.root)}: there already")
        return
    if not all((place.root / "data/demo" / file).exists() for file in maker.FILES):
        raise InputError("data/demo: not made yet: examples/demo/make_demo_data.py --out data/demo")
    folder = place.root / place.runs / "bases" / name
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "run.yaml", yaml.safe_dump(config_of(place, name), sort_keys=False).encode())
    print(f"detection: base {name}: training, about 20 minutes on two cores; log in {folder.relative_to(place.root)}", flush=True)
    runs.launch(place, folder / "run.yaml", folder / "train.log", f"base {name}")
    unet = latest_checkpoint(folder / "run") / "unet"
    subprocess.run([sys.executable, TO_HALF, unet, target], check=True)
    print(f"detection: {target.relative_to(place.root)}: made")
