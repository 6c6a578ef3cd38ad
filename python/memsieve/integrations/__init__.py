"""The sieve in other people's loops: one file each, imported by name (memsieve.integrations.accelerate, ...), so that none of them is
needed for the others. docs/integrations.md says which versions they were written against, and which were run."""
