"""Weights and batches to better weights."""
