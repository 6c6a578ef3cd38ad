"""The detection benchmark: what the rules find and spare, on several data sets and models. See docs/detection.md."""
