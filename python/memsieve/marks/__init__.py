"""Marks in training data by which a model that was trained on them is told: canaries and coats (docs/audit_canaries.md)."""
