"""What every test shares: eight CPU devices, strict shapes, a compilation cache, float64 on request."""

import fcntl
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil

# Read by JAX when it is imported; command lines that tests start inherit them.
_CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / f"jax-{platform.node()}"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compilation is most of what tests cost; nothing here runs long enough to repay optimised code.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that others may not have ends their process
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"  # half of the time to compile
    _FLAGS += " --xla_cpu_parallel_codegen_split_count=1"  # a tenth more: both processors are at work with tests
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", str(_CACHE.parent / "matplotlib"))  # not in the home folders that tests make

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests.helpers import tally as counts  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many small objects that stay, and looking them through as often as usual takes a fifth of its time.
gc.set_threshold(100_000, 50, 50)

hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """A folder with the embedded data sets, made once for all processes of a test run: the photographs take seconds.

    The emoji, which take more, are drawn when a test first opens them; others then wait.
    """
    from tim_jax import data

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "embedded"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other process waits, and finds what this one made
        for name in ("digits", "photos"):
            data.open_source(name, str(folder))
    return folder


@pytest.fixture(scope="module")
def data_directory(embedded, tmp_path_factory):
    """A folder of the module's own for `loader.directory`, in which the embedded data sets are there already."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("digits", "photos"):
        (folder / name).symlink_to(embedded / name)
    return folder


@pytest.fixture
def tally(record_property):
    """tally(kind, outcome, count): what became of inputs that somebody has made up, see tests/helpers/tally.py."""
    return lambda kind, outcome, count=1: record_property(counts.PROPERTY, [kind, outcome, count])


def pytest_terminal_summary(terminalreporter):
    """Says what became of inputs that somebody has made up."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    for line in counts.lines(reports):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def golden():
    """golden(name): arrays made once with the published implementation (see tests/golden)."""
    return lambda name: np.load(pathlib.Path(__file__).parent / "golden" / name)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """published(name): a folder laid out like a published model, with the golden weights and configuration of it."""
    classes = {
        "autoencoder_kl_tiny": "AutoencoderKL",
        "autoencoder_dc_tiny": "AutoencoderDC",
        "net_rae_decoder": "AutoencoderRAE",
    }

    def folder(name):
        files, made = pathlib.Path(__file__).parent / "golden" / name, tmp_path_factory.mktemp(name)
        config = json.loads(files.with_suffix(".json").read_text())
        config |= {"_class_name": classes[name]} if name in classes else {}
        (made / "config.json").write_text(json.dumps(config))
        shutil.copy(files.with_suffix(".safetensors"), made / "model.safetensors")
        return made

    return folder
