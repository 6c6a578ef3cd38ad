"""Reads what runs and audits leave, works out figures, and makes pages of them."""
