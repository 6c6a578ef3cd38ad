"""What must hold of the source tree itself."""
import re
import subprocess
from pathlib import Path

from conftest import BUILD, ROOT


ROOMS = ("lib", "filters", "diffusion", "runtime", "trainer", "audit", "bench", "python", "examples", "tests")
# Where an include is looked for, besides the folder of the file that has it.
INCLUDE_FOLDERS = (ROOT, ROOT / "lib/include", ROOT / "filters/include", ROOT / "lib/src", ROOT / "tests")


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cpp"):
                yield path


def included(path):
    """Pairs of what an #include says and the file of this tree that it means, None if it is none."""
    for name in re.findall(r"^#include\s*[<\"]([^>\"]+)[>\"]", path.read_text(), re.M):
        found = (folder / name for folder in (path.parent, *INCLUDE_FOLDERS))
        yield name, next((file.resolve() for file in found if file.exists()), None)


def room(path):
    return path.relative_to(ROOT).parts[0]


def include_rules():
    """{room: rooms it may include}: the table of CONTRIBUTING.md."""
    table = re.search(r"^## The rooms$.*?^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S).group()
    rows = re.findall(r"^\| `(\w+)/` \|.*\|([^|]*)\|$", table, re.M)
    return {name: {name, *re.findall(r"`(\w+)`", may)} for name, may in rows}


def test_rooms_include_what_the_map_allows():
    rules = include_rules()
    assert set(rules) == set(ROOMS) and all(may <= set(ROOMS) for may in rules.values())
    assert rules["lib"] == {"lib"} and all(rules[name] == {name, "lib"} for name in ("filters", "diffusion", "runtime"))
    seen = set()
    for path in sources(*ROOMS):
        for name, file in included(path):
            if file is None:
                assert name.split("/")[0] not in (*ROOMS, "memsieve"), f"{path}: no {name} in this tree"
                continue
            if path.name == "memsieve.h":
                continue  # the one header over both the library and its filters
            pair = room(path), room(file)
            assert pair[1] in rules[pair[0]], f"{path}: {pair[0]}/ may not include {name}"
            private = (ROOT / "lib/src") in file.parents
            assert not private or pair[0] in ("lib", "tests"), f"{path}: {name} is private to lib/"
            seen.add(pair)
    assert {("filters", "lib"), ("diffusion", "lib"), ("trainer", "diffusion"), ("trainer", "runtime")} <= seen


def test_no_two_headers_have_one_name():
    seen = {}
    for path in sources(*ROOMS):
        if path.suffix == ".h":
            assert path.name not in seen, f"{path} and {seen[path.name]}"
            seen[path.name] = path


def test_test_folders_hold_tests_mirror_a_room_and_are_built():
    built = re.findall(r"unit/[\w/]+", (ROOT / "tests/CMakeLists.txt").read_text())
    folders = {path for path in (ROOT / "tests/unit").rglob("*") if path.is_dir()}
    for folder in folders:
        name = folder.relative_to(ROOT / "tests/unit")
        assert any(folder.rglob("test_*.cpp")), f"{folder}: no test"
        sources_of_it = ROOT / name, ROOT / name.parts[0] / "src" / Path(*name.parts[1:])
        assert any(place.is_dir() for place in sources_of_it), f"{folder}: mirrors nothing"
        if any(folder.glob("*.cpp")):
            assert f"unit/{name}" in built, f"{folder}: not in tests/CMakeLists.txt"


def test_library_knows_no_model_no_data_set_and_no_optimiser():
    """The model is a callable: lib/ and filters/ include none of torch's nn, optim and data headers, and no log or MPI."""
    for path in sources("lib", "filters"):
        for name, _ in included(path):
            assert not re.search(r"torch/(nn|optim|data|torch\.h)|boost/|spdlog/", name), f"{path}: {name}"


def test_only_one_public_header_names_c10d():
    named = [p.name for p in sources("lib/include") if "c10d" in re.sub(r"//.*", "", p.read_text()) and p.name != "memsieve.h"]
    assert named == ["c10d_communicator.h"]


def test_configuration_reference_is_up_to_date():
    made = subprocess.run([BUILD / "trainer" / "memsieve-train", "--print-reference"], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "configuration.md").read_text()


def test_shipped_configurations_are_valid():
    train = BUILD / "trainer" / "memsieve-train"
    for path in sorted((ROOT / "configs").glob("demo*.yaml")):
        done = subprocess.run([train, "--config", path, "--print-config"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_links_in_the_documentation_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)  # code may hold ](
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_paths_in_the_documentation_exist():
    """What looks like a path of this tree; FILE, NAME and the like stand for something, and build/ is made."""
    folders = "|".join((*ROOMS, "scripts", "cmake", "docs"))
    for page in PAGES:
        for path in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w)", page.read_text()):
            if not re.search(r"[A-Z]{4}", path):
                assert (ROOT / path).exists(), f"{page.name}: {path}"
