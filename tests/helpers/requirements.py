"""What some tests need and no extra can install: a browser, a package without what it depends on."""

import os

import pytest


def missing(what: str) -> None:
    """Skips a test on machines of others, and fails it in CI, which installs all of it (`.ci/run`)."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
