"""Lets the tests of this folder import the in-memory streams of the services' tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "services"))
