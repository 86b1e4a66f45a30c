"""The attacks of attack_product.py, one module each. The environment of the commands is set before JAX is imported."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the commands are forks
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
