#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud, through queued resources and the gcloud command line, set up beforehand.
#
#   bash launch/tpu.sh train --config=configs/imagenet256_xl.py --workdir=gs://bucket/xl
#       makes and prepares the slice if there is none, trains on all its hosts, starts again as long as it should
#   bash launch/tpu.sh create | install     the two steps before training by themselves; install brings changed code
#   bash launch/tpu.sh stop                 SIGTERM to training, which saves and ends; interrupt `train` before
#   bash launch/tpu.sh delete               gives the slice back
#   bash launch/tpu.sh --dry-run STEP …     prints the commands and runs nothing; --dry-run at any place
#
# The variables below are what to change, here or in the environment.
# Training starts again after exit code 75 and after a signal, a lost host or a lost connection (above 128); after a
# preemption on a new slice. Any other exit code on a slice that is still there ends this script with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh
# shellcheck source-path=SCRIPTDIR source=flags.sh
source launch/flags.sh

NAME=${NAME:-tim}                              # of the slice and of its queued resource
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-east5-a}
TYPE=${TYPE:-v5p-256}                          # accelerator type; v5p and v4 count cores, two to a chip
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}             # v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e
SPOT=${SPOT:-1}                                # 1: cheaper and preempted at any time; 0: not
PYTHON_VERSION=${PYTHON_VERSION:-3.11}         # fetched by uv: the machines' own is older
MODULE=${MODULE:-tim_jax.train}                # or tim_jax.sample, tim_jax.evaluate
MAX_RESTARTS=${MAX_RESTARTS:-100}              # of training, in one call of this script
POLL=${POLL:-30}                               # seconds between questions about the slice's state

read_arguments launch/tpu.sh "$MODULE" "$@"

place=(--project="$PROJECT" --zone="$ZONE")
queued=(gcloud compute tpus queued-resources)
queueing='CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING' # states on the way to ACTIVE

state() {
    "${queued[@]}" describe "$NAME" "${place[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

# A command on all hosts at once; its exit code is that of the first host that failed, 255 for a lost connection.
on_all() {
    run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command="$1"
}

create() {
    local spot=()
    ((SPOT)) && spot=(--spot)
    run "${queued[@]}" create "$NAME" --node-id="$NAME" "${place[@]}" --accelerator-type="$TYPE" \
        --runtime-version="$RUNTIME" "${spot[@]}"
    note "then every $POLL s, until the state is ACTIVE:"
    if ((dry_run)); then
        run "${queued[@]}" describe "$NAME" "${place[@]}" --format='value(state.state)'
    else
        wait_for_slice
    fi
}

wait_for_slice() {
    local now
    until now="$(state)" && [[ $now == ACTIVE ]]; do
        if [[ ! $now =~ ^($queueing)$ ]]; then
            echo "error: the queued resource $NAME is in state $now" >&2
            return 1
        fi
        echo "waiting for $NAME: $now, $((SECONDS / 60)) min"
        sleep "$POLL"
    done
}

install() {
    local archive=/tmp/tim_jax.tar.gz
    run tar --create --gzip --file="$archive" LICENSE README.md configs constraints.txt pyproject.toml tim_jax
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:tim_jax.tar.gz" "${place[@]}" --worker=all
    on_all "mkdir -p tim_jax && tar -xzf tim_jax.tar.gz -C tim_jax && cd tim_jax &&\
 python3 -m pip install --quiet --user uv &&\
 python3 -m uv venv --quiet --allow-existing --python $PYTHON_VERSION .venv &&\
 python3 -m uv pip install --quiet --constraint constraints.txt --editable . 'jax[tpu]'"
}

# SIGTERM, then the wait for the checkpoint. Training's command line starts with python, that of a shell does not.
running="'^[^ ]*python -m $MODULE'"
stopping="pkill -f $running; while pgrep -f $running >/dev/null; do sleep 1; done"

stop() { on_all "$stopping"; }

# Makes sure of a slice with everything installed; one that was preempted is replaced.
slice() {
    local now=NONE
    note "where there is no slice yet, or it was preempted:"
    ((dry_run)) || now="$(state)"
    if [[ $now == ACTIVE ]]; then
        return
    elif [[ $now =~ ^($queueing)$ ]]; then
        wait_for_slice
    else
        delete
        create
    fi
    install
}

train() {
    local restarts code command
    use_flags tpu
    # A lost connection leaves training running on its host, and two runs must not share a workdir: stop it first.
    command="$stopping; cd tim_jax && LIBTPU_INIT_ARGS=$(typed "$LIBTPU_INIT_ARGS")"
    command+=" .venv/bin/python -m $MODULE $(typed "$@")"
    for ((restarts = 0; restarts <= MAX_RESTARTS; restarts++)); do
        slice
        note "then in any case:"
        code=0
        on_all "$command" || code=$?
        note "from the top, up to $MAX_RESTARTS times, on exit code 75 or above 128, or if the slice is not ACTIVE any"
        note "more; any other exit code is the end"
        ((code)) || return 0
        sleep "$POLL" # the state lags behind a preemption
        echo "training ended with exit code $code after $restarts restarts; the slice is $(state)"
        if ((code != 75 && code <= 128)) && [[ $(state) == ACTIVE ]]; then
            return "$code"
        fi
    done
    return "$code"
}

delete() {
    if ((dry_run)) || [[ $(state) != NONE ]]; then
        run "${queued[@]}" delete "$NAME" "${place[@]}" --force --quiet
    fi
}

step="${arguments[0]:-}"
arguments=("${arguments[@]:1}")
case "$step" in
    train) train "${arguments[@]}" ;;
    create | install | stop | delete)
        if ((${#arguments[@]})); then
            echo "error: ${arguments[0]}: $step takes no arguments; see bash launch/tpu.sh --help" >&2
            exit 2
        fi
        "$step"
        ;;
    *)
        echo "error: ${step:-no step}: must be one of train, create, install, stop, delete; see --help" >&2
        exit 2
        ;;
esac
