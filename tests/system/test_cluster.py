"""Who is one of several processes, as told by variables of the environment."""

import pytest

from tim_jax import train
from tim_jax.system.cluster import processes
from tim_jax.system.exit_codes import USER_ERROR

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "2"}
SRUN |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
HAND = {"JAX_COORDINATOR_ADDRESS": "host:8482", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.mark.parametrize(
    "environ, on_tpu, found",
    [
        ({}, False, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False, None),  # the shell of salloc
        (HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, False, None),
        ({}, True, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_SKIP_MDS_QUERY": "1"}, True, {}),
        (SRUN, False, {"cluster_detection_method": "slurm"}),
        (
            SRUN | HAND,
            True,
            {
                "coordinator_address": "host:8482",
                "num_processes": 2,
                "process_id": 1,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_who_joins(environ, on_tpu, found):
    assert processes(environ, on_tpu) == found


@pytest.mark.parametrize(
    "environ, named",
    [
        *((HAND | {name: ""}, name) for name in HAND),
        *((SRUN | {name: ""}, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID")),
        (HAND | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS is 'host'"),
        (HAND | {"JAX_COORDINATOR_ADDRESS": "host:99999"}, "host:99999"),
        (HAND | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        (HAND | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0'"),
        (HAND | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2"),
        (HAND | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'"),
        (SRUN | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x'"),
        (SRUN | {"SLURM_PROCID": "2"}, "SLURM_PROCID is 2"),
    ],
)
def test_wrong_or_half_set_variables_are_named(environ, named):
    with pytest.raises(ValueError) as error:
        processes(environ)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_training_says_so_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(SystemExit) as stop:
        train.main(["--config=digits", f"--workdir={tmp_path / 'run'}"])
    error = capsys.readouterr().err
    assert stop.value.code == USER_ERROR and "JAX_COORDINATOR_ADDRESS" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
