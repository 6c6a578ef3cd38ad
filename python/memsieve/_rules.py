"""The rules that come with the package: files of configs/ that hold a `sieve:` mapping and nothing else."""
from pathlib import Path

FOLDER = Path(__file__).parent / "rules"


def rules() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def rule(name: str) -> Path:
    """The path of the rule `name`: to read, to copy, or for `Sieve`, which also takes the name."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        from memsieve.errors import ConfigError
        raise ConfigError(f"rule '{name}': there is none of that name; there are {', '.join(rules())}")
    return path
