#!/usr/bin/env bash
# Runs the tests; arguments go to pytest, paths count from the repository root: bash launch/test.sh -m slow
# PYTHON=python3.12 bash launch/test.sh runs them with that Python, in an environment of its own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare test
prepare_gpu_compiler
exec "$python" -m pytest "$@"
