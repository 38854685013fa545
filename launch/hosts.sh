#!/usr/bin/env bash
# Trains on hosts that no scheduler manages: started on each of them, it keeps that host's process running. From the root
# of the repository, with a workdir that all hosts see:
#
#   JAX_COORDINATOR_ADDRESS=host0:8482 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0 bash launch/hosts.sh \
#       --config=configs/imagenet256_xl.py --workdir=/shared/runs/xl --config.data.path=LATENTS \
#       --config.data.images=IMAGES --config.codecs.image_encoder=/shared/DINOV2_B
#   bash launch/hosts.sh --dry-run [ARGUMENTS]   prints what it would run; --dry-run at any place
#
# Exit code 75, or a process killed by a signal: the process starts again, meets the others, and all go on from the last
# checkpoint. Any other exit code is the end, and so is a signal to this script, which waits until training has saved.
# With --config.checkpoint.local=/dev/shm/tim_jax there are later ones in the memory of the hosts to go on from.
# With --min-processes=3 three of four hosts go on where one has not come back within --wait=300 seconds.
# shellcheck disable=SC2153 # `variable` assigns them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh

variable PYTHON .venv/bin/python "has tim_jax, with the extras gpu or tpu, gcs for gs://, hub for hf://"
variable MODULE tim_jax.train "or tim_jax.sample, tim_jax.evaluate"
variable MAX_RESTARTS 100 "of training, in one call of this script"
variable PAUSE 5 "seconds before a restart"
variable JAX_COORDINATOR_ADDRESS "" "host:port of the first process; this and the next two are for several hosts"
variable JAX_NUM_PROCESSES "" "number of hosts"
variable JAX_PROCESS_ID "" "of this host, from 0 on"

read_arguments launch/hosts.sh "$MODULE" "$@"
for number in MAX_RESTARTS PAUSE; do
    check_word "$number" "${!number}" '[0-9]+' "a whole number"
done

child='' signals=0
trap 'signals=$((signals + 1)); [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT HUP

# In the background, since bash runs no trap while a command runs before it. A signal ends the wait, not the command.
train() {
    local before
    "$PYTHON" -m "$MODULE" ${arguments[@]+"${arguments[@]}"} &
    child=$!
    while :; do
        before=$signals code=0
        wait "$child" || code=$?
        ((signals == before)) && break
    done
}

note "again, up to $MAX_RESTARTS times, on exit code 75 or above 128; any other exit code is the end"
if ((dry_run)); then
    run "$PYTHON" -m "$MODULE" ${arguments[@]+"${arguments[@]}"}
    exit
fi
for ((restarts = 0; ; restarts++)); do
    train
    echo "training ended with exit code $code after $restarts restarts"
    if ((signals || restarts >= MAX_RESTARTS || (code != 75 && code <= 128))); then
        exit "$code"
    fi
    sleep "$PAUSE"
done
