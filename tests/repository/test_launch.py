"""The launch scripts: linted, manifests held against schemas, run with stand-ins for srun, scontrol and gcloud."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml

from tests.helpers.launch import LAUNCH, ROOT, bash
from tim_jax.system.cluster import processes
from tim_jax.system.exit_codes import DONE, FAILED, RESTART, USER_ERROR


def tool(name):
    """A program of the test extra: in this environment's folder of scripts, else on PATH."""
    path = shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert path, f"{name}: not installed; it belongs to the test extra"
    return path


# The files themselves.


def test_shell_is_clean():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) >= 8
    subprocess.run([tool("shellcheck"), "--external-sources", *scripts], check=True)


def test_the_dockerfile_is_clean():
    subprocess.run([tool("hadolint"), "--failure-threshold=info", LAUNCH / "Dockerfile"], check=True)
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users and users[-1] not in ("root", "0")
    assert len({line.split()[1] for line in lines if line.startswith("FROM")}) == 1, "both stages need one Python"
    assert any("--constraint constraints.txt" in line for line in lines)
    copies = [line for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = [word for line in copies for word in line.split()[1:-1]]
    assert "tim_jax" in copied and all((ROOT / name).exists() for name in copied)


# The flags.


def accept(flags):
    """Whether XLA starts with these flags: an unknown one ends the process."""
    environ = os.environ | {"XLA_FLAGS": flags}
    return subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environ, capture_output=True)


def flags(accelerator, variable, given=""):
    command = f"source launch/flags.sh && use_flags {accelerator} && echo ${variable}"
    environ = {"PATH": os.environ["PATH"], variable: given}
    return subprocess.check_output(["bash", "-c", command], cwd=ROOT, env=environ, text=True).strip()


def test_xla_knows_every_gpu_flag_and_a_flag_given_by_hand_comes_last():
    ours = flags("gpu", "XLA_FLAGS", "--xla_gpu_enable_pipelined_all_gather=false")
    assert len(ours.split()) > 5 and ours.split()[-1] == "--xla_gpu_enable_pipelined_all_gather=false"
    assert accept(ours).returncode == 0
    wrong = accept(f"{ours} --xla_gpu_no_such_flag=true")
    assert wrong.returncode != 0 and b"Unknown flag" in wrong.stderr


def test_libtpu_knows_every_tpu_flag():
    pytest.importorskip("libtpu")
    compile_nothing = (
        "from jax.experimental import topologies;"
        "topologies.get_topology_desc(platform='tpu', topology_name='v5e:4x4'); print('known')"
    )
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

    def start(text):
        environ = os.environ | quiet | {"LIBTPU_INIT_ARGS": text}
        return subprocess.run([sys.executable, "-c", compile_nothing], env=environ, capture_output=True, text=True)

    ours = flags("tpu", "LIBTPU_INIT_ARGS")
    assert "known" in start(ours).stdout
    assert "known" not in start(f"{ours} --xla_tpu_no_such_flag=true").stdout


# Kubernetes.

NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]


def strictly(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


# The fields of jobset.x-k8s.io/v1alpha2 in use here. What lies below a Job's spec has Kubernetes' own schemas.
JOB_SET = strictly(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=strictly(
        ["name"], name=NAME, annotations={"type": "object", "additionalProperties": {"type": "string"}}
    ),
    spec=strictly(
        ["replicatedJobs"],
        failurePolicy=strictly(
            [],
            maxRestarts={"type": "integer", "minimum": 0},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={
                "type": "array",
                "items": strictly(
                    ["name", "action"],
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                    onJobFailureReasons={"type": "array", "items": {"enum": REASONS}},
                    targetReplicatedJobs={"type": "array", "items": NAME},
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": strictly(
                ["name", "template"],
                name=NAME,
                replicas={"type": "integer", "minimum": 0},
                template=strictly(["spec"], metadata={"type": "object"}, spec={"type": "object"}),
            ),
        },
    ),
)  # fmt: skip


def manifest(*arguments, **environ):
    done = bash("kubernetes.sh", "--dry-run", *arguments, **environ)
    assert done.returncode == DONE, done.stderr
    return yaml.safe_load(done.stdout)


def job(job_set):
    return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]


def outcome(job_set, code):
    """What Kubernetes and the JobSet controller do about a container that ended with `code`, by their documentation."""
    action = "Count"
    for rule in job(job_set)["podFailurePolicy"]["rules"]:
        assert rule["onExitCodes"]["operator"] == "In"
        if code in rule["onExitCodes"]["values"]:
            action = rule["action"]
            break
    assert job(job_set)["backoffLimit"] == 0  # so that one counted failure is one too many
    reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[action]
    for rule in job_set["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_the_manifest_fits_its_schemas(accelerator):
    found = manifest("--config=digits", "--workdir=gs://bucket/run", ACCELERATOR=accelerator)
    jsonschema.validate(found, JOB_SET)
    named = {"metadata": {"name": "x"}}
    template = {"apiVersion": "v1", "kind": "PodTemplate", **named, "template": job(found)["template"]}
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", **named, "spec": job(found)}, "1.31", strict=True
    )
    kubernetes_validate.validate(template, "1.31", strict=True)
    template["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(template, "1.31", strict=True)


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_kubernetes_starts_again_after_75_and_signals_only(accelerator):
    found = manifest(ACCELERATOR=accelerator)
    assert {code: outcome(found, code) for code in (FAILED, USER_ERROR, RESTART, 134, 137, 143)} == {
        FAILED: "FailJobSet", USER_ERROR: "FailJobSet", RESTART: "RestartJobSet",
        134: "RestartJobSet", 137: "RestartJobSet", 143: "RestartJobSet",
    }  # fmt: skip
    pod = job(found)["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60


def test_arguments_reach_the_container_as_given():
    words = ["--config=digits", 'a "quoted" \\ word', "$HOME", "two words", "key: value # no comment"]
    (container,) = job(manifest(*words))["template"]["spec"]["containers"]
    # Kubernetes turns $$ into $, and $(NAME) into a variable's value.
    assert [word.replace("$$", "$") for word in container["args"]] == ["-m", "tim_jax.train", *words]


def test_gpu_hosts_find_each_other():
    found = manifest(ACCELERATOR="gpu", GPU_HOSTS="3", NAME="run")
    (container,) = job(found)["template"]["spec"]["containers"]
    assert job(found)["parallelism"] == job(found)["completions"] == 3
    environ = {item["name"]: item.get("value", "2") for item in container["env"]}
    (given,) = [item for item in container["env"] if "valueFrom" in item]
    assert given["name"] == "JAX_PROCESS_ID" and "job-completion-index" in str(given["valueFrom"])
    found = processes(environ)
    assert found["coordinator_address"].split(":")[0] == "run-hosts-0-0.run"
    assert found["num_processes"] == 3 and found["process_id"] == 2


def test_kubectl_gets_the_manifest(tmp_path):
    assert bash("kubernetes.sh", "--config=digits", RECORD=str(tmp_path / "record")).returncode == DONE
    first, _, rest = (tmp_path / "record").read_text().partition("\n")
    assert first == "kubectl apply --filename=-" and yaml.safe_load(rest) == manifest("--config=digits")


def test_an_accelerator_that_is_not():
    done = bash("kubernetes.sh", "--dry-run", ACCELERATOR="npu")
    assert done.returncode == USER_ERROR and "npu" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_job_of_which_fewer_pods_may_go_on_has_succeeded_with_so_many():
    found = job(manifest("--config=digits", "--min-processes=3", ACCELERATOR="gpu"))
    assert found["successPolicy"] == {"rules": [{"succeededCount": 3}]} and found["completions"] == 4
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": found}
    kubernetes_validate.validate(whole, "1.31", strict=True)
    assert "successPolicy" not in job(manifest("--config=digits", ACCELERATOR="gpu"))


@pytest.mark.parametrize("word", ["--min-processes=5", "--min-processes=0", "--min-processes=x", "--min-processes"])
def test_a_smaller_job_that_cannot_be_is_refused(word):
    for given, accelerator in ((word, "gpu"), ("--min-processes=3", "tpu")):
        done = bash("kubernetes.sh", "--dry-run", given, ACCELERATOR=accelerator)
        assert (done.returncode, done.stdout) == (USER_ERROR, "") and done.stderr.startswith(f"error: {given}: must be")


# SLURM.


@pytest.fixture
def slurm(tmp_path):
    """slurm(text, …): exit code, what scontrol was asked, output; of a job of two tasks that run a module `text`."""
    # As a job sees it: the script is a copy elsewhere, the repository the folder it was submitted from.
    submit = tmp_path / "submit"
    (submit / "modules").mkdir(parents=True)
    (submit / "launch").symlink_to(LAUNCH)
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    environ = {
        "SLURM_JOB_ID": "4242", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "localhost", "SLURM_SUBMIT_DIR": str(submit), "RECORD": str(tmp_path / "record"),
        "PYTHON": sys.executable, "PYTHONPATH": f"{submit / 'modules'}{os.pathsep}{ROOT}",
        "JAX_COORDINATOR_PORT": str(port), "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # fmt: skip

    def start(text, *arguments, **more):
        (submit / "modules" / "work.py").write_text(text)
        done = bash("slurm.sh", *arguments, timeout=500, **environ | {"MODULE": "work"} | more)
        record = tmp_path / "record"
        assert list(submit.glob("*.codes")) == []
        return done.returncode, record.read_text() if record.exists() else "", done.stdout + done.stderr

    return start


REQUEUED = "scontrol requeue 4242\n"


@pytest.mark.parametrize(
    "code, requeued",
    [(DONE, ""), (FAILED, ""), (USER_ERROR, ""), (RESTART, REQUEUED)],
)
def test_slurm_requeues_after_75_only(code, requeued, slurm):
    assert slurm(f"raise SystemExit({code})")[:2] == (code, requeued)


@pytest.mark.parametrize("code, requeued", [(USER_ERROR, ""), (RESTART, REQUEUED)])
def test_the_first_code_counts_not_those_of_the_tasks_that_it_ends(code, requeued, slurm):
    """The other task, told to end by srun, ends with 75 or by the signal."""
    for other in ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75 + 2 - code))", "pass"):
        text = f"import os, signal, sys, time\ncode = {code}\n{other}\n"
        text += "if os.environ['SLURM_PROCID'] == '1':\n    sys.exit(code)\ntime.sleep(100)"
        assert slurm(text)[:2] == (code, requeued)
        requeued *= 2  # the record goes on


def test_slurm_requeues_after_a_lost_process_but_not_for_ever(slurm):
    text = "import os, signal, time\nif os.environ['SLURM_PROCID'] == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    text += "time.sleep(100)"
    assert slurm(text, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")[:2] == (137, "")
    assert slurm(text, SLURM_RESTART_COUNT="2", MAX_RESTARTS="3")[:2] == (137, REQUEUED)


def test_sigterm_leaves_time_to_save(slurm):
    """What --signal sends reaches the processes, and the script waits for them."""
    text = "import os, signal, sys, time\n"
    text += "def save(*_):\n    time.sleep(1)\n    print('saved', flush=True)\n    sys.exit(75)\n"
    text += "signal.signal(signal.SIGTERM, save)\n"
    text += "if os.environ['SLURM_PROCID'] == '0':\n    time.sleep(1)\n    os.kill(os.getppid(), signal.SIGTERM)\n"
    text += "    os.kill(int(os.popen(f'ps -o ppid= -p {os.getppid()}').read()), signal.SIGTERM)\n"
    text += "time.sleep(100)"
    code, record, output = slurm(text)
    assert (code, record) == (RESTART, REQUEUED) and output.count("saved") == 2


def test_slurm_wants_a_job():
    done = bash("slurm.sh", "--config=digits")
    assert done.returncode == USER_ERROR and "SLURM_JOB_ID" in done.stderr and len(done.stderr.splitlines()) == 1


JOINED = """
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from tim_jax.system import cluster
cluster.join()
cluster.join()  # joins once
total = multihost_utils.process_allgather(jnp.full(1, 10.0 ** jax.process_index())).sum()
print(f"joined {jax.process_index()} of {jax.process_count()}: {float(total)}", flush=True)
"""


def test_processes_of_srun_join(slurm):
    code, record, output = slurm(JOINED)
    assert (code, record) == (DONE, ""), output
    assert output.count("joined 0 of 2: 11.0") == output.count("joined 1 of 2: 11.0") == 1, output


def test_processes_with_explicit_variables_join():
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    environ = os.environ | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    environ |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", JOINED]
    runs = [
        subprocess.Popen(command, env=environ | {"JAX_PROCESS_ID": str(index)}, stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    for index, run in enumerate(runs):
        assert f"joined {index} of 2: 11.0" in run.communicate(timeout=120)[0] and run.returncode == DONE


@pytest.mark.slow
def test_two_processes_take_a_training_step_under_slurm(slurm):
    """The real thing: launch/slurm.sh, tim_jax.train, one process for each half of the batch."""
    small = {"width": 16, "depth": 1, "heads": 2, "bottleneck": 8, "encoder_depth": 1}
    code, record, output = slurm(
        "", "--config=digits", "--check", "--config.data.batch_size=8", MODULE="tim_jax.train",
        *(f"--config.model.{key}={n}" for key, n in small.items()),
    )  # fmt: skip
    assert (code, record) == (DONE, ""), output
    assert output.count("one step of 8 examples") == 2, output
    losses = re.findall(r"\bloss (\S+),", output)
    assert len(losses) == 2 and losses[0] == losses[1], "both processes hold the same global loss"


# TPU slices.


@pytest.fixture
def tpu(tmp_path):
    """tpu(codes, …): exit code and the steps that launch/tpu.sh train took where training ended with these codes."""

    def start(*codes, state=None, **more):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        if state:
            (tmp_path / "slice").write_text(f"{state}\n")
        environ = {name.upper(): str(tmp_path / name) for name in ("record", "slice", "codes")} | {"POLL": "0"}
        done = bash("tpu.sh", "train", "--config=digits", **environ | more)
        asked = (tmp_path / "record").read_text()
        steps = re.findall(r"queued-resources (create|delete)|(scp) |(uv venv)|(tim_jax\.train) --config=digits", asked)
        return done.returncode, ["".join(step) for step in steps]

    return start


MADE = ["create", "scp", "uv venv"]
TRAINED = "tim_jax.train"


@pytest.mark.parametrize(
    "codes, state, code, steps",
    [
        ([0], None, 0, [*MADE, TRAINED]),
        ([0], "ACTIVE", 0, [TRAINED]),
        ([75, 255, 134, 0], "ACTIVE", 0, [TRAINED] * 4),
        ([75, 2], "ACTIVE", 2, [TRAINED] * 2),
        ([1], "ACTIVE", 1, [TRAINED]),
        (["preempted", 0], "ACTIVE", 0, [TRAINED, "delete", *MADE, TRAINED]),
        ([0], "SUSPENDED", 0, ["delete", *MADE, TRAINED]),
    ],
)
def test_tpu_training_starts_again_as_it_should(codes, state, code, steps, tpu):
    assert tpu(*codes, state=state) == (code, steps)


def test_two_slices_are_nodes_of_one_queued_resource_and_all_their_hosts_are_reached(tpu, tmp_path):
    assert tpu(75, 0, SLICES="2", TYPE="v5p-64") == (0, [*MADE, TRAINED, TRAINED])
    asked = (tmp_path / "record").read_text()
    assert "create tim --node-count=2 --node-prefix=tim" in asked and "--accelerator-type=v5p-64" in asked
    reached = re.findall(r"^gcloud .* (?:ssh|scp) .*", asked, re.M)
    assert len(reached) == 4 and all(
        "queued-resources" in line and "--node=all --worker=all" in line for line in reached
    )


@pytest.mark.parametrize("kind, hosts, chips", [("v5p-64", 8, 4), ("v6e-8", 1, 8), ("v5e-256", 64, 4), ("v4-32", 4, 4)])
def test_a_slice_says_how_many_hosts_and_chips_there_are(kind, hosts, chips):
    found = manifest(TYPE=kind, TPU_SLICES="2", DATA_CLAIM="imagenet", LOCAL_PATH="/mnt/ssd/tim_jax")
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert job(found)["parallelism"] == job(found)["completions"] == hosts
    pod = job(found)["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert np.prod([int(size) for size in shape.split("x")]) == hosts * chips
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    data, local = ({volume["name"]: volume for volume in pod["volumes"]}[mounts[at]] for at in ("/data", "/local"))
    assert (data["persistentVolumeClaim"]["claimName"], local["hostPath"]["path"]) == ("imagenet", "/mnt/ssd/tim_jax")
    jsonschema.validate(found, JOB_SET)


def test_tpu_training_does_not_start_again_for_ever(tpu):
    assert tpu(*[75] * 9, state="ACTIVE", MAX_RESTARTS="2") == (75, [TRAINED] * 3)


@pytest.mark.parametrize("step", ["stop", "train"])
def test_a_host_stops_what_still_runs_and_waits_for_it(step, tmp_path):
    """What tpu.sh gives the hosts, run by a shell as a host's ssh server does, beside an earlier run of training."""
    checkout = tmp_path / "tim_jax"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    (checkout / "module_of_a_test.py").write_text(
        "import os, signal, sys, time\n"
        "if '--again' in sys.argv:\n    print('again', os.environ['LIBTPU_INIT_ARGS'])\n    sys.exit()\n"
        "def save(*_):\n    time.sleep(1)\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('up', flush=True)\ntime.sleep(100)\n"
    )
    (tmp_path / "gcloud").write_text(
        '#!/usr/bin/env bash\nall="$*"\n[[ $all == *describe* ]] && echo ACTIVE && exit\n'
        f'cd {tmp_path} && exec bash -c "${{all##*--command=}}"\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "MODULE": "module_of_a_test"}
    earlier = [python, "-m", "module_of_a_test"]
    with subprocess.Popen(earlier, cwd=checkout, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "up\n"
        done = bash("tpu.sh", step, *(["--again"] if step == "train" else []), **environ)
        code = run.poll()
        run.kill()
    assert (done.returncode, code) == (DONE, RESTART), done.stderr
    assert ("again --xla_tpu" in done.stdout) == (step == "train")
