"""What scripts/wheel.sh asks of an installed wheel: that it is the installed one, whole, and works. Argument: the tree it must not be."""
import pathlib
import subprocess
import sys

import memsieve
from memsieve import cli

here = pathlib.Path(memsieve.__file__).resolve().parent
assert not here.is_relative_to(pathlib.Path(sys.argv[1]).resolve()), f"{here} is the source tree"
wanted = ["py.typed", "_core.pyi", "_build.py", "libmemsieve.so.0", "rules/default.yaml", "rules/no_held_out.yaml", "commands/prepare_dataset.py",
          "templates/ledger.html.j2", "integrations/accelerate.py"]
missing = [name for name in wanted if not (here / name).is_file()]
assert not missing, f"the wheel lacks {missing}"
# Nothing of the machine that built it: torch is found where it is.
for library in (here / "libmemsieve.so.0", pathlib.Path(memsieve._core.__file__)):
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    paths = [line.split("[")[1].rstrip("]\n") for line in dynamic.splitlines() if "RUNPATH" in line or "RPATH" in line]
    assert all(path.startswith("$ORIGIN") and "torch" not in path for path in paths), f"{library}: {paths}"
for command in cli.MODULES:
    done = subprocess.run([sys.executable, "-m", "memsieve", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: memsieve {command}"), f"{command}: {done.stderr}"
print(f"memsieve {memsieve.__version__} of {here}")
