"""Reproducible supervised fine-tuning of LLaMA-style language models."""
