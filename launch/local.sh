#!/usr/bin/env bash
# Trains the default configuration on the embedded digits into runs/digits, evaluates it and names the pictures.
# It installs for the NVIDIA GPU or the TPU that this machine has; ACCELERATOR=cpu (or gpu, tpu) decides otherwise.
#
#   bash launch/local.sh --config.training.steps=200     arguments go to training
#   bash launch/local.sh --dry-run [ARGUMENTS]           prints the commands and runs nothing
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

variable ACCELERATOR "" "gpu, tpu or cpu; by default what this machine has"
workdir=runs/digits
read_arguments launch/local.sh tim_jax.train "$@"
for word in ${arguments[@]+"${arguments[@]}"}; do
    if [[ $word == --workdir* || $word == --check ]]; then
        echo "error: $word: this script trains in $workdir; python -m tim_jax.train takes it" >&2
        exit 2
    fi
done

find_accelerator
note "$why"
note "where that is not done yet: makes $venv and installs tim_jax into it, extra $extra"
((dry_run)) || { echo "$why" && prepare "$extra"; }
run "$python" -m tim_jax.train --config=configs/digits.py --workdir="$workdir" ${arguments[@]+"${arguments[@]}"}
run "$python" -m tim_jax.evaluate --workdir="$workdir" --steps=1,2,4,8,16,32,64
((dry_run)) && exit

echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s; pictures:"
find "$PWD/$workdir" -name "*.png" | sort
