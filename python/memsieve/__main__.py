"""python -m memsieve: the command line (memsieve.cli)."""
import sys

from memsieve.cli import main

if __name__ == "__main__":
    sys.exit(main())
