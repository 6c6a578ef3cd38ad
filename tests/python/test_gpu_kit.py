"""The kit for a machine with a GPU: made of this build, and run in an environment that holds torch and numpy alone."""
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import make
import pytest
from conftest import BUILD, ROOT, assert_refused, run, run_ok
from fake_sources import SIZES, use_fakes

SITE = Path(sysconfig.get_paths()["purelib"])
# torch, numpy and what they import
HELD = ("torch", "torchgen", "functorch", "triton", "nvidia", "numpy", "numpy.libs", "sympy", "mpmath", "networkx", "jinja2",
        "markupsafe", "filelock", "fsspec", "typing_extensions.py", "setuptools", "pkg_resources")
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.skipif(not all((BUILD / name).exists() for name in make.PROGRAMS), reason="not everything is built")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that knows torch and numpy but none of the packages that scripts/requirements.txt names besides."""
    folder = tmp_path_factory.mktemp("bare")
    run_ok(sys.executable, "-m", "venv", "--without-pip", folder)
    site = folder / "lib" / f"python{HERE}" / "site-packages"
    for name in HELD:
        if (SITE / name).exists():
            (site / name).symlink_to(SITE / name)
    for about in SITE.glob("*.dist-info"):
        if about.name.split("-")[0] in HELD:
            (site / about.name).symlink_to(about)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        assert use_fakes(patch, folder, SIZES | {"HELD_OUT": 16})("data") == 0
    out = folder / "kit"
    said = run_ok(sys.executable, ROOT / "bench" / "gpu_kit" / "make.py", "--out", out, "--build", BUILD, "--data", folder / "data",
                  "--python-version", HERE)
    assert "MiB" in said
    return out


def start(kit, python, out, *more, **environment):
    return run(kit / "run.sh", "--python", python, "--out", out, "--quick", *more, timeout=200, **environment)


def results_of(out):
    results = json.loads((out / "results.json").read_text())
    return results, {part["name"]: part for part in results["parts"]}


def test_the_kit_is_small_and_knows_nothing_of_this_machine(kit, tmp_path):
    assert sum(path.stat().st_size for path in kit.iterdir()) < make.LIMIT_MIB * 2**20
    subprocess.run(["tar", "-xf", kit / "kit.tar.xz", "-C", tmp_path], check=True)
    system = {f"lib{name}.so.{version}" for name, version in (("c", 6), ("m", 6), ("dl", 2), ("rt", 1), ("pthread", 0), ("util", 1),
                                                              ("resolv", 2), ("gcc_s", 1), ("stdc++", 6), ("gomp", 1))}
    held = {path.name for path in (tmp_path / "lib").iterdir()}
    for program in (tmp_path / "programs").iterdir():
        assert "runpath" not in run_ok("readelf", "-d", program).lower()
        found = run_ok("ldd", program, LD_LIBRARY_PATH=f"{SITE / 'torch' / 'lib'}:{tmp_path / 'lib'}")
        needed = {line.split()[0] for line in found.splitlines() if "=>" in line and str(SITE) not in line}
        assert needed - held - system <= {line.split()[0] for line in found.splitlines() if "libcudart" in line}
    about = json.loads((tmp_path / "kit.json").read_text())
    assert sum(about["parts"].values()) - about["parts"]["compare_python_8"] >= 400 and len(about["commit"]) == 40


def test_it_runs_in_a_bare_environment(kit, bare_python, tmp_path):
    """h5py and its like come out of the kit; parts that need a GPU say so."""
    assert run(bare_python, "-c", "import h5py").returncode != 0
    result = start(kit, bare_python, tmp_path, "--parts", "machine,cuda_tests,no_waiting,demo")
    results, parts = results_of(tmp_path)
    assert result.returncode == 0, result.stdout + (tmp_path / "log.txt").read_text()
    assert results["finished"] and list(parts) == ["machine", "cuda_tests", "no_waiting", "demo"]
    assert parts["machine"]["status"] == "ok" and parts["machine"]["figures"]["torch"].startswith("2.")
    if parts["machine"]["figures"]["gpu"] is None:
        for name in ("cuda_tests", "no_waiting"):
            assert parts[name]["status"] == "needs a GPU" and "GPU" in parts[name]["said"]
    demo = parts["demo"]["figures"]
    assert parts["demo"]["status"] == "ok" and demo["last_step_on"] == demo["last_step_off"] == 4 and demo["step_ms_on"] > 0
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("memsieve-kit.*/runs"))


def test_a_part_that_fails_or_hangs_costs_only_itself(kit, bare_python, tmp_path):
    spec = importlib.util.spec_from_file_location("kit_run", ROOT / "bench" / "gpu_kit" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    work = tmp_path / "work"
    (work / "packages").mkdir(parents=True)
    (work / "parts.py").write_text("""import sys, time
print('results: {"a": 1}', flush=True)
if sys.argv[1] == "broken": sys.exit("no such thing")
if sys.argv[1] == "gpu": print("only with a GPU"); sys.exit(77)
if sys.argv[1] == "hangs": time.sleep(60)
""")

    class Args:
        quick = False

    entries = {}
    with open(tmp_path / "log.txt", "w") as log:
        for name, seconds in (("good", 20), ("broken", 20), ("gpu", 20), ("hangs", 2)):
            entries[name] = module.run_part(name, seconds, Args, work, log)
    assert {name: entry["status"] for name, entry in entries.items()} == {"good": "ok", "broken": "failed", "gpu": "needs a GPU",
                                                                          "hangs": "timeout"}
    assert all(entry["figures"] == {"a": 1} for entry in entries.values())
    assert entries["broken"]["said"] == "no such thing" and entries["gpu"]["said"] == "only with a GPU"
    assert entries["hangs"]["seconds"] < 10


def test_it_refuses(kit, bare_python, tmp_path):
    assert_refused(start(kit, bare_python, tmp_path, "--parts", "nothing"), 1, "no part 'nothing'")
    assert_refused(run(kit / "run.sh", "--python"), 2, "--python")
    (tmp_path / "precious").write_text("")
    result = run(sys.executable, ROOT / "bench" / "gpu_kit" / "make.py", "--out", tmp_path, "--build", BUILD)
    assert_refused(result, 1, "holds other files")
    result = run(sys.executable, ROOT / "bench" / "gpu_kit" / "make.py", "--out", tmp_path / "kit", "--build", tmp_path)
    assert_refused(result, 1, "memsieve-train is not built")


def test_a_kit_that_is_too_large_is_refused(kit, tmp_path, monkeypatch):
    """Whatever grows: the limit is checked over the whole folder."""
    monkeypatch.setattr(make, "LIMIT_MIB", 1)
    for step in ("add_programs", "add_files", "add_packages", "pack"):
        monkeypatch.setattr(make, step, lambda *_: None)
    (tmp_path / "kit.tar.xz").write_bytes(bytes(2 * 2**20))
    with pytest.raises(SystemExit, match="2.0 MiB, more than 1"):
        make.make(tmp_path, BUILD, ROOT / "data" / "demo", HERE)
