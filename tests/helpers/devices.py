"""Flags of XLA for processes that tests start."""

import os
import re

FLAGS = os.environ["XLA_FLAGS"]  # as conftest.py has them


def for_devices(count: int) -> str:
    """Those that the tests themselves run with, for so many CPU devices."""
    return re.sub(r"device_count=\d+", f"device_count={count}", FLAGS)
