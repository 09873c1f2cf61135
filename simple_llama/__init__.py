"""Reproducible supervised fine-tuning of LLaMA-style language models."""

import os

# PyTorch's threads wait for each other in a busy loop; where another process shares the cores (two
# queued experiments, say) that made training up to 20 times slower. A shorter loop costs little
# alone. It is read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
