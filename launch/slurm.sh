#!/usr/bin/env bash
#SBATCH --job-name=tim
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Trains on GPU nodes under SLURM, one process per GPU. From the root of the repository, on a disk all nodes share:
#
#   sbatch launch/slurm.sh --config=configs/imagenet256_xl.py --workdir=/shared/runs/xl \
#       --config.data.path=LATENTS --config.data.images=IMAGES --config.codecs.image_encoder=/shared/DINOV2_B
#   bash launch/slurm.sh --dry-run [ARGUMENTS]   prints what the job would run; --dry-run at any place
#   MODULE=tim_jax.evaluate sbatch launch/slurm.sh --workdir=/shared/runs/xl
#
# The lines above and the variables are what to change; options of sbatch override the lines. As many tasks per
# node as GPUs: JAX gives task i of a node the node's GPU i.
# SIGTERM comes 300 s before the time limit, and before a preemption: training saves and ends with 75.
# With sbatch --nodes=3-4 … --min-processes=24 a job that goes back to the queue goes on with the nodes that there are.
# Exit code 75, or a process killed by a signal, which is how a lost node shows: the job goes back to the queue and goes
# on from its last checkpoint. Any other exit code ends the job.
# shellcheck disable=SC2153 # `variable` assigns them
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # a job runs a copy of this file from elsewhere
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh
# shellcheck source-path=SCRIPTDIR source=flags.sh
source launch/flags.sh

variable PYTHON .venv/bin/python "has tim_jax with the extra gpu, and gcs for gs://, hub for hf://"
variable MODULE tim_jax.train "or tim_jax.sample, tim_jax.evaluate"
variable MAX_RESTARTS 100 "of one job"
declare_flags gpu
RESTARTS=${SLURM_RESTART_COUNT:-0} # so far

read_arguments launch/slurm.sh "$MODULE" "$@"
if ((dry_run)); then
    SLURM_JOB_ID=${SLURM_JOB_ID:-JOB}
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "error: SLURM_JOB_ID is not set; start with: sbatch launch/slurm.sh ARGUMENTS" >&2
    exit 2
fi

use_flags gpu
run export "XLA_FLAGS=$XLA_FLAGS" "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"

# One lost process ends all, since none can go on alone. What it ends has other exit codes, and so has srun: what counts
# is the first code that a process wrote down. The trap lets the shell outlive SIGTERM to do that.
# shellcheck disable=SC2016 # expanded by the task's own shell
task='trap : TERM; "${@:2}" || { code=$?; echo "$code" >>"$1"; exit "$code"; }'
codes=slurm-$SLURM_JOB_ID-$RESTARTS.codes
code=0
run srun --kill-on-bad-exit=1 --label bash -c "$task" task "$codes" "$PYTHON" -m "$MODULE" "${arguments[@]}" || code=$?
if [[ -e $codes ]]; then
    code=$(head -n 1 "$codes")
    rm "$codes"
fi

((dry_run)) || echo "training ended with exit code $code after $RESTARTS restarts"
note "on exit code 75 or above 128, up to $MAX_RESTARTS times; else the job ends with the exit code"
if ((dry_run || ((code == 75 || code > 128) && RESTARTS < MAX_RESTARTS))); then
    run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
