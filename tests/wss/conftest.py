"""Lets the tests of this folder import its helper modules and the laboratory by name under any import mode."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "nat")]
