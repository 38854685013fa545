"""Workdirs that several files of this folder sample from, made once."""

import pytest

from tests.helpers import workdirs


@pytest.fixture(scope="session")
def text_workdir(tmp_path_factory):
    """A workdir of a run that is conditioned on text, at step 0; nothing in it may be changed but `sampled`."""
    return workdirs.workdir(tmp_path_factory.mktemp("text") / "run", "photos_t2i", **workdirs.TEXT)
