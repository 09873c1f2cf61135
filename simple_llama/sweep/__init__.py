"""Searching params: an Optuna study whose trials are DVC experiments."""
