#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud, through queued resources and the gcloud command line, set up beforehand.
#
#   bash launch/tpu.sh train --config=configs/imagenet256_xl.py --workdir=gs://BUCKET/xl --config.data.path=LATENTS \
#           --config.data.images=IMAGES --config.codecs.image_encoder=hf://facebook/dinov2-base
#       makes and prepares the slice if there is none, trains on all its hosts, starts again as long as it should
#   bash launch/tpu.sh create | install     the two steps before training by themselves; install brings changed code
#   bash launch/tpu.sh stop                 SIGTERM to training, which saves and ends; interrupt `train` before
#   bash launch/tpu.sh delete               gives the slice back
#   bash launch/tpu.sh --dry-run STEP …     prints the commands and runs nothing; --dry-run at any place
#
# LATENTS and IMAGES are folders that every host has, such as a disk that all of them mount. SLICES=2 trains on two slices
# over the data-centre network, to whose hosts Google Cloud tells where the others are.
# Training starts again after exit code 75 and after a signal, a lost host or a lost connection (above 128); after a
# preemption on a new slice. Any other exit code on a slice that is still there ends this script with it.
# shellcheck disable=SC2153 # `variable` assigns them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh
# shellcheck source-path=SCRIPTDIR source=flags.sh
source launch/flags.sh
# shellcheck source-path=SCRIPTDIR source=slices.sh
source launch/slices.sh

variable NAME tim "of the slice and of its queued resource"
variable PROJECT my-project "of Google Cloud"
variable ZONE us-east5-a "that has such slices"
variable TYPE v5p-256 "accelerator type; v5p and v4 count cores, two to a chip, v5e and v6e chips"
variable SLICES 1 "of that type, over the data-centre network"
variable RUNTIME "" "version of the machines' software; by default that of TYPE"
variable SPOT 1 "1: cheaper, and preempted at any time; 0: not"
variable PYTHON_VERSION 3.11 "fetched by uv: the machines' own is older"
variable EXTRAS gcs,hub,tpu "of tim_jax that are installed: gs:// paths, hf:// paths, JAX for TPUs"
variable MODULE tim_jax.train "or tim_jax.sample, tim_jax.evaluate, tim_jax.verify"
variable MAX_RESTARTS 100 "of training, in one call of this script"
variable POLL 30 "seconds between questions about the slice's state"
declare_flags tpu

read_arguments launch/tpu.sh "$MODULE" "$@"
check_word PYTHON_VERSION "$PYTHON_VERSION" '[0-9.]+' "a version"
check_word EXTRAS "$EXTRAS" '[a-z0-9,-]*' "names of extras with commas between"
read_slice "$TYPE"
check_slices "$SLICES" SLICES

place=(--project="$PROJECT" --zone="$ZONE")
queued=(gcloud compute tpus queued-resources)
# Several slices are nodes of one queued resource, which gcloud reaches together; a lone one is a node of that name.
if ((SLICES > 1)); then
    nodes=(--node-count="$SLICES" --node-prefix="$NAME")
    hosts=("${queued[@]}") everywhere=(--node=all --worker=all)
else
    nodes=(--node-id="$NAME")
    hosts=(gcloud compute tpus tpu-vm) everywhere=(--worker=all)
fi
queueing='CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING' # states on the way to ACTIVE

state() {
    "${queued[@]}" describe "$NAME" "${place[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

# A command on all hosts at once; its exit code is that of the first host that failed, 255 for a lost connection.
on_all() {
    run "${hosts[@]}" ssh "$NAME" "${place[@]}" "${everywhere[@]}" --command="$1"
}

create() {
    local spot=()
    ((SPOT)) && spot=(--spot)
    run "${queued[@]}" create "$NAME" "${nodes[@]}" "${place[@]}" --accelerator-type="$slice_type" \
        --runtime-version="${RUNTIME:-$slice_runtime}" "${spot[@]}"
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
    run "${hosts[@]}" scp "$archive" "$NAME:tim_jax.tar.gz" "${place[@]}" "${everywhere[@]}"
    on_all "mkdir -p tim_jax && tar -xzf tim_jax.tar.gz -C tim_jax && cd tim_jax &&\
 python3 -m pip install --quiet --user uv &&\
 python3 -m uv venv --quiet --allow-existing --python $PYTHON_VERSION .venv &&\
 python3 -m uv pip install --quiet --constraint constraints.txt --editable '.[$EXTRAS]'"
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
