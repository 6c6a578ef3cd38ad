"""rest.py OUT LIBRARY... [--prefix P]...: a C file with a function of each undefined name that begins with a P, which returns 0.

Weak, so that those written by hand win.
"""
import argparse
import pathlib
import subprocess

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("libraries", nargs="+")
parser.add_argument("--prefix", action="append", required=True)
options = parser.parse_args()
names = set()
for library in options.libraries:
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True).stdout
    names |= {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.split()}
wanted = sorted(name for name in names if name.startswith(tuple(options.prefix)))
options.out.write_text("".join(f"__attribute__((weak)) long {name}(void) {{ return 0; }}\n" for name in wanted))
