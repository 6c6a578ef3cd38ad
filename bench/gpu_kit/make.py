#!/usr/bin/env python3
"""Makes the GPU kit out of a build and the demo's data; scripts/gpu_kit.sh calls it.

  make.py --out DIR [--build build/release] [--data data/demo] [--python-version 3.12]
"""
import argparse
import fnmatch
import importlib.metadata
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import parts

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MIB = 60
PROGRAMS = ("trainer/memsieve-train", "diffusion/memsieve-unet", "bench/memsieve-bench-train-step", "bench/memsieve-bench-overhead")
FILES = ("configs/*.yaml", "configs/*.json", "models/demo_base/*", "python/memsieve/*.py", "python/memsieve/reports/*.py",
         "bench/*.py")
DATA = ("mix.h5", "held_out.h5", "validation.h5", "prompts.h5")
# Come with every Linux that runs torch's wheels, or with torch itself.
SYSTEM = re.compile(r"(ld-linux-x86-64|lib(c|m|dl|rt|pthread|util|resolv|gcc_s|stdc\+\+|gomp))\.so[.\d]*")
# What the Python parts import beside torch and numpy: distribution -> folder by which run.py tells whether it is missing. No whole
# environment: of diffusers only the UNet and what it imports.
PACKAGES = {"h5py": "h5py", "pyyaml": "yaml", "safetensors": "safetensors", "diffusers": "diffusers", "pillow": "PIL",
            "importlib_metadata": "importlib_metadata", "zipp": "zipp", "huggingface_hub": "huggingface_hub", "httpx2": "httpx2",
            "httpcore2": "httpcore2", "truststore": "truststore", "anyio": "anyio", "h11": "h11", "idna": "idna", "certifi": "certifi",
            "tqdm": "tqdm", "packaging": "packaging", "regex": "regex", "requests": "requests", "urllib3": "urllib3",
            "charset_normalizer": "charset_normalizer", "click": "click"}
LEFT_OUT = ("*/tests/*", "*/test/*", "*/__pycache__/*", "*.pyc", "*.pyi", "*/docs/*", "diffusers/pipelines/*_*/*", "../*", "*/RECORD")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
WRAPPER = """#!/bin/sh
# The program itself, with the libraries that run.py has found.
root=$(cd "$(dirname "$0")/../../.." && pwd)
LD_LIBRARY_PATH=$MEMSIEVE_KIT_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$root/programs/$(basename "$0")" "$@"
"""


def fail(text):
    raise SystemExit(f"gpu_kit: {text}")


def output_of(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def unit_tests(build):
    """The test programs that hold tests for a GPU."""
    found = [path for path in sorted((build / "tests").glob("test_*"))
             if path.is_file() and re.search(r"^[1-9]\d* (matching )?test case", subprocess.run(
                 [path, "--list-tests", "[.cuda]"], capture_output=True, text=True).stdout, re.M)]
    return [str(path.relative_to(build)) for path in found] or fail(f"{build}/tests: no program holds tests tagged [.cuda]")


def libraries_of(program):
    """What the loader finds for it beside the system's own and the Python environment's: name -> path."""
    pairs = re.findall(r"^\s*(\S+) => (\S.*) \(0x", output_of("ldd", program), re.M)
    return {name: Path(path) for name, path in pairs if not SYSTEM.fullmatch(name) and "site-packages" not in path}


def strip(path):
    """Without symbols, and without the folders of this machine in which it would look for libraries."""
    subprocess.run(["strip", path], check=True)
    script = f'file(RPATH_REMOVE FILE "{path}")\n'
    with tempfile.NamedTemporaryFile("w", suffix=".cmake") as file:
        file.write(script)
        file.flush()
        subprocess.run(["cmake", "-P", file.name], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def add_programs(stage, build):
    for name in PROGRAMS:
        if not (build / name).exists():
            fail(f"{build / name} is not built")
    (stage / "programs").mkdir()
    (stage / "lib").mkdir()
    libraries = {}
    for name in (*PROGRAMS, *unit_tests(build)):
        program, wrapper = build / name, stage / "build" / "release" / name
        libraries |= libraries_of(program)
        inner = stage / "programs" / program.name
        shutil.copy2(program, inner)
        strip(inner)
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(WRAPPER)
        wrapper.chmod(0o755)
    for name, path in libraries.items():
        shutil.copy2(path, stage / "lib" / name)
        if name.startswith("libmemsieve"):
            strip(stage / "lib" / name)


def add_files(stage, data):
    pairs = {path.relative_to(ROOT): path for pattern in FILES for path in ROOT.glob(pattern)}
    pairs |= {Path("data", "demo", name): data / name for name in DATA}
    for name, path in pairs.items():
        if not path.exists():
            fail(f"{path} is missing: examples/demo/make_demo_data.py makes it")
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    shutil.copy2(ROOT / "bench" / "gpu_kit" / "parts.py", stage / "parts.py")


def wanted(name):
    return not any(fnmatch.fnmatch("/" + name if pattern.startswith("*/") else name, pattern) for pattern in LEFT_OUT)


def copy_installed(distribution, folder):
    files = importlib.metadata.distribution(distribution).files
    for file in (file for file in files if wanted(str(file))):
        target = folder / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.locate(), target)


def copy_downloaded(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if wanted(name)])


def add_packages(stage, python_version):
    """Copies of the packages that stand here, or for another version of Python the same ones from their registry."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python_version == here:
        for distribution, name in PACKAGES.items():
            copy_installed(distribution, stage / "packages" / name)
        return
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
                   "--implementation", "cp", "--python-version", python_version, "-d", wheels]
        command += [f"--platform={name}" for name in PLATFORMS]
        command += [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"pip download failed: {done.stderr.strip().splitlines()[-1]}")
        for distribution, name in PACKAGES.items():
            of_it = [path for path in Path(wheels).glob("*.whl")
                     if path.name.split("-")[0].lower() == re.sub(r"[-.]", "_", distribution).lower()]
            copy_downloaded(of_it[0], stage / "packages" / name)


def describe(stage, python_version):
    git = ["git", "-C", ROOT]
    commit = output_of(*git, "rev-parse", "HEAD").strip()
    about = {"commit": commit, "changed": bool(output_of(*git, "status", "--porcelain", "-uno").strip()),
             "python_version": python_version, "torch": importlib.metadata.version("torch"),
             "parts": {name: seconds for name, (_, seconds) in parts.PARTS.items()}}
    (stage / "kit.json").write_text(json.dumps(about, indent=1))


def pack(stage, out):
    # The fastest preset; the large dictionary finds the repeated pictures' rows again.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 25}]
    with lzma.open(out / "kit.tar.xz", "wb", filters=filters) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for path in sorted(stage.iterdir()):
            archive.add(path, path.name)
    for name in ("run.sh", "run.py"):
        shutil.copy2(ROOT / "bench" / "gpu_kit" / name, out / name)


def make(out, build, data, python_version):
    if out.exists() and any(path.name not in ("kit.tar.xz", "run.sh", "run.py", "results") for path in out.iterdir()):
        fail(f"{out} holds other files; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        add_programs(stage, build)
        add_files(stage, data)
        add_packages(stage, python_version)
        describe(stage, python_version)
        pack(stage, out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file()) / 2**20
    if size > LIMIT_MIB:
        fail(f"{out} takes {size:.1f} MiB, more than {LIMIT_MIB}")
    print(f"gpu_kit: {out}: {size:.1f} MiB for Python {python_version}; start {out / 'run.sh'} on the machine with the GPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo")
    parser.add_argument("--python-version", default="3.12")
    args = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", args.python_version):
        parser.error("--python-version wants something like 3.12")
    make(args.out, args.build.resolve(), args.data, args.python_version)


if __name__ == "__main__":
    main()
