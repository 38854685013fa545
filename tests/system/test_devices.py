"""What a command says it runs on, and the accelerators that it finds idle."""

import importlib.util
import os
import sys

import jax
import pytest

from tim_jax.system import accelerators, devices
from tim_jax.system.accelerators import GPU, TPU


@pytest.mark.parametrize(
    "kind, files, found",
    [
        (GPU, {}, False),
        (GPU, {"dev/nvidia0": ""}, True),
        (GPU, {"dev/nvidiactl": ""}, False),
        (GPU, {"usr/lib/wsl/lib/libcuda.so.1": ""}, True),
        (TPU, {"dev/accel0": ""}, True),
        (TPU, {"sys/bus/pci/devices/0/vendor": "0x1ae0\n", "sys/bus/pci/devices/0/device": "0x0063\n"}, True),
        # A network card of Google's cloud machines, and a card of another maker.
        (TPU, {"sys/bus/pci/devices/0/vendor": "0x1ae0\n", "sys/bus/pci/devices/0/device": "0x0042\n"}, False),
        (TPU, {"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/device": "0x0063\n"}, False),
    ],
)
def test_an_accelerator_is_known_by_its_files(kind, files, found, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert accelerators.is_there(kind, str(tmp_path)) == found


@pytest.mark.parametrize("kind", [GPU, TPU], ids=lambda kind: kind.extra)
@pytest.mark.parametrize("installed", [False, True])
def test_the_owner_of_an_idle_accelerator_is_told(kind, installed, monkeypatch, capsys, caplog):
    monkeypatch.setattr(devices, "is_there", lambda one: one is kind)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    devices.announce()
    assert not caplog.records, "JAX_PLATFORMS=cpu, as in tests, is a choice"
    monkeypatch.delenv("JAX_PLATFORMS")
    devices.announce(sys.stderr)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelname == "WARNING" and said.startswith(f"{kind.name} is on this machine")
    assert (f'pip install "tim-jax[{kind.extra}]"' in said) == (not installed)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert text.splitlines()[0].startswith("on the CPU, ") and f"(JAX {jax.__version__})" in text


@pytest.mark.parametrize(
    "file, platforms, silenced",
    [
        ("", "", True),
        ("dev/accel0", "", False),
        ("dev/vfio/7", "", False),
        ("dev/vfio/vfio", "", True),
        ("", "tpu", False),
    ],
)
def test_the_tpu_library_is_left_alone_where_there_may_be_a_tpu(file, platforms, silenced, tmp_path, monkeypatch):
    for name in accelerators.NO_TPU:
        monkeypatch.setenv(name, "")  # so that it is as before at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    accelerators.quiet(str(tmp_path))
    assert all((name in os.environ) == silenced for name in accelerators.NO_TPU)
