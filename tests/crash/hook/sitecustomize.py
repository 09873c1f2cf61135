"""On the PYTHONPATH of a stage to be killed: Python imports this before anything of the stage."""

import os
import sys

if "CRASH" in os.environ and "stages.train" in sys.orig_argv:
    sys.path.insert(0, os.getcwd())
    from tests.crash import moments

    moments.arm(os.environ["CRASH"])
