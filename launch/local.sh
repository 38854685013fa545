#!/usr/bin/env bash
# Trains the default configuration on the embedded digits into runs/digits, evaluates it and names the pictures.
# Arguments go to training: bash launch/local.sh --config.training.steps=200
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare core
workdir=runs/digits
"$python" -m tim_jax.train --config=configs/digits.py --workdir="$workdir" "$@"
"$python" -m tim_jax.evaluate --workdir="$workdir" --steps=1,2,4,8,16,32,64

echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s; pictures:"
find "$PWD/$workdir" -name "*.png" | sort
