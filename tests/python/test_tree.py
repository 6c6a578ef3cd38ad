"""What must hold of the source tree itself."""
import re
import subprocess

from conftest import BUILD, ROOT


def sources(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cpp"):
                yield path


def test_library_knows_no_model_no_data_set_and_no_optimiser():
    """The model is a callable: lib/ and filters/ include neither torch's nn, optim and data headers nor the trainer."""
    for path in sources("lib", "filters"):
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                assert not re.search(r"torch/(nn|optim|data|torch\.h)|trainer/|boost/|spdlog/", line), f"{path}: {line}"


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


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)  # code may hold ](
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
