"""What the software withstands: `python -m tests.reliability` measures it; see docs/reliability.md.

Each module has a function `check(amount) -> Outcome`, which runs in a process of its own.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT)]
