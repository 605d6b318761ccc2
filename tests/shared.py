"""Where real images and the configurations of public models lie, on a machine that has them."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("SINKPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
