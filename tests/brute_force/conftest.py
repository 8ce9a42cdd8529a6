"""Makes the helper modules of this folder importable: it is no package, and needs no name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
