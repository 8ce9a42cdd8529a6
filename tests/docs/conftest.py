from __future__ import annotations

import sys
from pathlib import Path

# Modules are imported by path (importlib mode), so what these tests share is found only from here.
sys.path.insert(0, str(Path(__file__).parent))
