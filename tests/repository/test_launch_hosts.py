"""launch/hosts.sh, which keeps the process of a host running that no scheduler manages."""

import pytest

from tests.helpers.launch import bash
from tim_jax.system.exit_codes import RESTART


@pytest.fixture
def hosts(tmp_path):
    """hosts(text, …): exit code and output of launch/hosts.sh where Python is the shell script `text`."""
    python = tmp_path / "python"

    def start(text, **more):
        python.write_text(f"#!/usr/bin/env bash\n{text}")
        python.chmod(0o755)
        environ = {"PYTHON": str(python), "PAUSE": "0", "CODES": str(tmp_path / "codes")} | more
        done = bash("hosts.sh", "--config=digits", **environ)
        return done.returncode, done.stdout

    return start


@pytest.mark.parametrize(
    "codes, most, starts",
    [("0", 9, 1), ("75 75 0", 9, 3), ("137 134 1", 9, 3), ("2", 9, 1), ("75 75 75", 1, 2), ("75", 0, 1)],
)
def test_a_host_starts_its_process_again_after_75_and_signals_only(codes, most, starts, hosts, tmp_path):
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    text = 'echo "$@"; code=$(head -n 1 "$CODES"); sed -i 1d "$CODES"; exit "$code"'
    code, said = hosts(text, MAX_RESTARTS=str(most))
    assert code == int(codes.split()[starts - 1])
    assert said.count("-m tim_jax.train --config=digits\n") == starts
    assert said.endswith(f"training ended with exit code {code} after {starts - 1} restarts\n")


def test_a_signal_to_a_host_lets_its_process_save_and_is_the_end(hosts):
    save = "trap 'sleep 0.5; echo saved; exit 75' TERM\nkill -TERM $PPID\nfor i in {1..600}; do sleep 0.1; done"
    assert hosts(save) == (RESTART, "saved\ntraining ended with exit code 75 after 0 restarts\n")
