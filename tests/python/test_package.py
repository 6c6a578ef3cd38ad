"""Installation is proved by projects outside the tree: one that links the library, and plug-ins, those of the docs too."""
import re
import subprocess

import pytest
from conftest import ROOT, assert_refused, configure_and_build, run, run_ok

SIEVE = """
sieve:
  plugins: {plugins}
  filters: {{{filters}}}
  standardise: {{by: none}}
  evidence: {{kind: visit}}
  threshold: {{kind: fixed, drop: 0}}
"""


@pytest.fixture(scope="module")
def program(installed, tmp_path_factory):
    build = configure_and_build(ROOT / "examples" / "5-find-package", installed, tmp_path_factory.mktemp("outside"))
    return build / "uses-memsieve"


@pytest.fixture(scope="module")
def plugin(installed, tmp_path_factory):
    return configure_and_build(ROOT / "examples" / "4-plugin", installed, tmp_path_factory.mktemp("outside"))


def sieve_yaml(folder, plugins, filters="magnitude: {}"):
    path = folder / "sieve.yaml"
    path.write_text(SIEVE.format(plugins=f"[{', '.join(str(p) for p in plugins)}]", filters=filters))
    return path


def compile_plugin(folder, source):
    (folder / "plugin.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "plugin.so", folder / "plugin.c"], check=True)
    return folder / "plugin.so"


def stamp(magic="msieve", abi=2, gxx=1017, strings=1, torch="2.11.0"):
    return ("struct { char magic[8]; int abi, gxx, strings; char torch[32]; } memsieve_plugin_stamp = "
            f'{{"{magic}", {abi}, {gxx}, {strings}, "{torch}"}};\n')


def test_what_is_installed(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if not path.is_dir()}
    assert any(name.endswith("/libmemsieve.so") for name in files)
    assert any(name.endswith("/memsieveConfigVersion.cmake") for name in files)
    headers = {path.name for folder in ("lib", "filters") for path in (ROOT / folder / "include" / "memsieve").glob("*.h")}  # not detail/
    assert headers == {name.rpartition("/")[2] for name in files if name.startswith("include/memsieve/")}
    assert not any(name.endswith(".cpp") for name in files)


def test_installed_trainer_runs(installed):
    assert "--config" in run_ok(installed / "bin" / "memsieve-train", "--help")


def test_program_outside_the_tree(program, tmp_path):
    out = run_ok(program, sieve_yaml(tmp_path, []))
    assert out.startswith("filters: magnitude; ")
    dropped, seen = (int(word) for word in out.split() if word.isdigit())
    # A sample's magnitude is zero until it has been trained on once: its first visit is kept, and no other.
    assert seen == 200 * 16 and 64 <= seen - dropped <= 80


def test_plugin_outside_the_tree(program, plugin, tmp_path):
    out = run_ok(program, sieve_yaml(tmp_path, [plugin / "contrast.so"], "contrast: {timestep_min: 200}"))
    assert out.startswith("filters: contrast; ")


def test_plugin_with_the_yaml_that_names_it(program, plugin):
    out = run_ok(program, plugin.parent / "contrast.yaml", cwd=plugin.parent)
    assert out.startswith("filters: contrast; ")


def test_plugin_option_is_validated(program, plugin, tmp_path):
    yaml = sieve_yaml(tmp_path, [plugin / "contrast.so"], "contrast: {timestep_mim: 200}")
    assert_refused(run(program, yaml), 2, "sieve.yaml:4", "timestep_mim", "did you mean 'timestep_min'?")


@pytest.fixture(scope="module")
def printed(installed, tmp_path_factory):
    """The plug-ins of docs/write_a_filter.md as printed, in the project of examples/4-plugin."""
    blocks = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "write_a_filter.md").read_text(), re.S)
    ratio, drift, in_the_loop = blocks
    loop = f"#include <memsieve/batch.h>\nvoid loop(memsieve::Batch& batch, memsieve::Counterfactual start_model) {{\n{in_the_loop}}}\n"
    built = {}
    for name, source in {"ratio": ratio, "drift": drift + loop}.items():
        folder = tmp_path_factory.mktemp("printed") / name
        folder.mkdir()
        project = (ROOT / "examples" / "4-plugin" / "CMakeLists.txt").read_text()
        (folder / "CMakeLists.txt").write_text(project.replace("contrast", name))
        (folder / f"{name}.cpp").write_text(source)
        built[name] = configure_and_build(folder, installed, tmp_path_factory.mktemp("outside")) / f"{name}.so"
    return built


def test_documented_filter(program, printed, tmp_path):
    out = run_ok(program, sieve_yaml(tmp_path, [printed["ratio"]], "ratio: {power: 0.25}"))
    assert out.startswith("filters: ratio; ")


def test_documented_signal(program, printed, tmp_path):
    result = run(program, sieve_yaml(tmp_path, [printed["drift"]], "drift: {}"))
    assert_refused(result, 2, "the counterfactual prediction 'start' is missing", "Batch::counterfactuals")


def test_library_shows_its_public_names_alone(installed):
    library, = (path for path in installed.rglob("libmemsieve.so") if path.exists())
    symbols = run_ok("nm", "-DC", "--defined-only", library)
    shown = set(re.findall(r"^\S+ \w (?:(?:typeinfo|vtable)(?: name)? for |non-virtual thunk to |guard variable for )?memsieve::(\w+)",
                           symbols, re.M))
    public = "".join(path.read_text() for path in installed.rglob("include/memsieve/*.h"))
    assert {"Sieve", "Plan", "FilterRegistry", "DataError", "load_plugin"} <= shown
    assert not {name for name in shown if not re.search(rf"\b{name}\b", public)}


def test_plugin_missing(program, tmp_path):
    assert_refused(run(program, sieve_yaml(tmp_path, ["/nowhere/none.so"])), 2, "/nowhere/none.so", "cannot be opened")


def test_plugin_without_stamp(program, tmp_path):
    plugin = compile_plugin(tmp_path, "int nothing;\n")
    assert_refused(run(program, sieve_yaml(tmp_path, [plugin])), 2, "plugin.so", "no stamp", "MEMSIEVE_PLUGIN")


@pytest.mark.parametrize("other", [{"abi": 99}, {"torch": "1.13.1"}, {"strings": 0}, {"gxx": 1002}])
def test_plugin_for_another_abi(program, tmp_path, other):
    plugin = compile_plugin(tmp_path, stamp(**other))
    assert_refused(run(program, sieve_yaml(tmp_path, [plugin])), 2, "plugin.so", str(*other.values()), "rebuild the plug-in")


def test_installed_package_refuses_another_version(installed, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(p LANGUAGES CXX)\nfind_package(memsieve 7.0 CONFIG REQUIRED)\n")
    result = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    assert result.returncode != 0 and "memsieve" in result.stderr and "7.0" in result.stderr


def test_yaml_mistake(program, tmp_path):
    yaml = sieve_yaml(tmp_path, [], "magnitude: {norn: l2}")
    assert_refused(run(program, yaml), 2, "sieve.yaml:4", "sieve.filters.magnitude.norn", "did you mean 'norm'?")
