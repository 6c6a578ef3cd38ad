"""Makes data sets (docs/data_format.md) and prompts (docs/audit.md) from pictures, captions and a pipeline of diffusers."""
