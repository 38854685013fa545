"""Messages of libraries as commands show them."""

import logging
import sys

import pytest
from absl import logging as absl_logging
from tqdm import tqdm

from tim_jax.system import logs


@pytest.fixture
def installed():
    before = list(logging.root.handlers)
    logs.install()
    logs.install()
    yield
    logging.root.handlers = before


def test_a_message_is_a_line_of_its_own_beside_a_progress_bar(installed, capsys):
    with tqdm(total=2, file=sys.stderr) as bar:
        bar.update()
        absl_logging.warning("step %d left out", 3)
        absl_logging.info("not shown")
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert [line.strip() for line in lines].count("warning: step 3 left out") == 1
    assert "not shown" not in "".join(lines)
