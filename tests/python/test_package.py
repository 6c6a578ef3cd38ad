"""Installation is proved by projects outside the tree: one that links the library, and plug-ins, those of the docs too."""
import os
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
    return ('const struct { char magic[8]; int abi, gxx, strings; char torch[32]; } memsieve_plugin_stamp '
            f'__attribute__((section(".memsieve_stamp"))) = {{"{magic}", {abi}, {gxx}, {strings}, "{torch}"}};\n')


def leaves_a_mark(folder):
    """C source of a constructor that makes the file `ran`."""
    return ('#include <stdio.h>\n__attribute__((constructor)) static void run(void) '
            f'{{ fclose(fopen("{folder / "ran"}", "w")); }}\n')


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
    plugin = compile_plugin(tmp_path, leaves_a_mark(tmp_path))
    assert_refused(run(program, sieve_yaml(tmp_path, [plugin])), 2, "plugin.so", "no stamp", "MEMSIEVE_PLUGIN")
    assert not (tmp_path / "ran").exists()


def test_no_plugin(program, tmp_path):
    os.mkfifo(tmp_path / "pipe.so")
    (tmp_path / "text.so").write_text("text")
    assert_refused(run(program, sieve_yaml(tmp_path, [tmp_path / "pipe.so"]), timeout=20), 2, "pipe.so", "is not a file but a pipe")
    assert_refused(run(program, sieve_yaml(tmp_path, [tmp_path / "text.so"])), 2, "text.so", "no stamp")


# Whose they are.

@pytest.fixture
def own(plugin, tmp_path):
    """A copy of the plug-in in a folder of its own, and the YAML that names it."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "contrast.so").write_bytes((plugin / "contrast.so").read_bytes())
    (folder / "contrast.so").chmod(0o644)
    return folder / "contrast.so", sieve_yaml(tmp_path, [folder / "contrast.so"], "contrast: {}")


@pytest.mark.parametrize("which, mode", [("file", 0o646), ("folder", 0o757), ("folder", 0o1777), ("above", 0o757)])
def test_plugin_that_others_can_change(program, own, which, mode):
    path, yaml = own
    assert run(program, yaml).returncode == 0
    open_one = {"file": path, "folder": path.parent, "above": path.parent.parent}[which]
    open_one.chmod(mode)
    assert_refused(run(program, yaml), 2, "contrast.so", f"others can write to {open_one} (mode {mode:04o})", "chmod go-w",
                   "sieve.plugins_of_anyone: true")
    text = yaml.read_text()
    yaml.write_text(text.replace("  filters:", "  plugins_of_anyone: true\n  filters:"))
    assert run_ok(program, yaml).startswith("filters: contrast; ")
    yaml.write_text(text.replace("  filters:", "  plugins_of_anyone: perhaps\n  filters:"))
    assert run(program, yaml).returncode == 2


def test_plugin_under_a_sticky_folder(program, own):
    path, yaml = own
    path.parent.parent.chmod(0o1777)
    assert run_ok(program, yaml).startswith("filters: contrast; ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_plugin_of_somebody_else(program, own):
    path, yaml = own
    os.chown(path, 12345, -1)
    assert_refused(run(program, yaml), 2, "contrast.so", "belongs to user 12345", "sieve.plugins_of_anyone: true")


def test_plugin_behind_a_link(program, own, tmp_path):
    path, _ = own
    path.chmod(0o666)
    (tmp_path / "link.so").symlink_to(path)
    assert_refused(run(program, sieve_yaml(tmp_path, [tmp_path / "link.so"], "contrast: {}")), 2, "link.so", f"others can write to {path}")


@pytest.mark.parametrize("other", [{"abi": 99}, {"torch": "1.13.1"}, {"strings": 0}, {"gxx": 1002}])
def test_plugin_for_another_abi(program, tmp_path, other):
    plugin = compile_plugin(tmp_path, stamp(**other) + leaves_a_mark(tmp_path))
    assert_refused(run(program, sieve_yaml(tmp_path, [plugin])), 2, "plugin.so", str(*other.values()), "rebuild the plug-in")
    assert not (tmp_path / "ran").exists()


def test_a_mark_is_left_where_the_stamp_is_right(program, tmp_path):
    """What the tests above rest on: the constructor does run, once the stamp has passed."""
    ours = run(program, sieve_yaml(tmp_path, [compile_plugin(tmp_path, stamp(abi=99))])).stderr
    torch, gxx, strings = re.search(r"but this is memsieve ABI \d+, torch (\S+), C\+\+ ABI (\d+)/(\d)", ours).groups()
    plugin = compile_plugin(tmp_path, stamp(torch=torch, gxx=gxx, strings=strings) + leaves_a_mark(tmp_path))
    assert_refused(run(program, sieve_yaml(tmp_path, [plugin])), 2, "no memsieve_plugin_register")
    assert (tmp_path / "ran").exists()


def test_installed_package_refuses_another_version(installed, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(p LANGUAGES CXX)\nfind_package(memsieve 7.0 CONFIG REQUIRED)\n")
    result = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    assert result.returncode != 0 and "memsieve" in result.stderr and "7.0" in result.stderr


def test_yaml_mistake(program, tmp_path):
    yaml = sieve_yaml(tmp_path, [], "magnitude: {norn: l2}")
    assert_refused(run(program, yaml), 2, "sieve.yaml:4", "sieve.filters.magnitude.norn", "did you mean 'norm'?")
