"""Makes the benchmarks importable, which no installation has; an installed flowops goes first."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
