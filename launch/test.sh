#!/usr/bin/env bash
# Runs the tests; arguments go to pytest, paths count from the repository root: bash launch/test.sh -m nightly
# PYTHON=python3.12 bash launch/test.sh runs them with that Python, in an environment of its own.
# bash launch/test.sh --dry-run prints the command and runs nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

read_arguments launch/test.sh pytest "$@"
note "where that is not done yet: makes $venv and installs what tests need into it"
if ((!dry_run)); then
    prepare test
    prepare_gpu_compiler
    prepare_text_encoder
fi
run exec "$python" -m pytest ${arguments[@]+"${arguments[@]}"}
