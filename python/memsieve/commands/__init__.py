"""The commands of memsieve.cli, a module each, with a `main(words)` that returns the exit code. None needs the compiled module."""
