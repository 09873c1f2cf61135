"""Reproducible supervised fine-tuning of LLaMA-style language models."""

import os

# PyTorch's threads wait for each other in a busy loop. If another process uses the same cores (for
# example a second queued experiment), this made training up to 20 times slower. A shorter loop
# costs little otherwise. The variable is read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
