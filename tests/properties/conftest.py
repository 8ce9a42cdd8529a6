from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# Solving is not a unit of constant time, and a shared machine makes it less so.
COMMON = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("local", COMMON)
settings.register_profile("ci", COMMON, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
