"""The benchmarks are scripts: their folders are where they look for each other."""

import sys
from pathlib import Path

CLAIMS = Path(__file__).parents[2] / "benchmarks" / "claims"
sys.path.insert(0, str(CLAIMS))
