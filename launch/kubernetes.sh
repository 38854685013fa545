#!/usr/bin/env bash
# Trains on Kubernetes: one JobSet for TPU slices or GPU nodes, one process per host. Needs the JobSet controller in the
# cluster and an image made from launch/Dockerfile.
#
#   DATA_CLAIM=imagenet bash launch/kubernetes.sh --config=configs/imagenet256_xl.py --workdir=gs://BUCKET/xl \
#       --config.data.path=/data/LATENTS --config.data.images=/data/IMAGES \
#       --config.codecs.image_encoder=hf://facebook/dinov2-base
#   bash launch/kubernetes.sh --dry-run [ARGUMENTS]   prints the manifest and applies nothing; at any place
#
# TYPE names the slice; TPU_SLICES=2 trains on two of them. Their hosts find each other by TPU_WORKER_HOSTNAMES and, over
# several slices, MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_NUM_SLICES and MEGASCALE_SLICE_ID, which GKE sets in the pods
# of a JobSet.
# With --min-processes=3 three of four GPU hosts go on where the fourth is not there within --wait=300 seconds, since its
# node is gone: its pod stays pending, and takes part again from the next restart on. A slice of TPUs runs whole or not.
# Exit code 75, or a process killed by a signal, which is how a lost host shows: all hosts start again and go on from
# the last checkpoint. Exit codes 1 and 2, a failure and a user's mistake, end the JobSet.
# shellcheck disable=SC2153 # `variable` assigns them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=run.sh
source launch/run.sh
# shellcheck source-path=SCRIPTDIR source=flags.sh
source launch/flags.sh
# shellcheck source-path=SCRIPTDIR source=slices.sh
source launch/slices.sh

variable NAME tim "of the JobSet"
variable IMAGE registry.example.com/tim-jax:tpu "made from launch/Dockerfile"
variable ACCELERATOR tpu "tpu or gpu"
variable MODULE tim_jax.train "or tim_jax.sample, tim_jax.evaluate, tim_jax.verify"
variable GRACE 120 "seconds from SIGTERM to SIGKILL, for the last checkpoint"
variable MAX_RESTARTS 100 "of the JobSet"
variable MEMORY 64Gi "of a host, at least"
variable DATA_CLAIM "" "PersistentVolumeClaim with the data, mounted at /data; none by default"
variable LOCAL_PATH "" "folder of the nodes, mounted at /local for --config.checkpoint.local; none by default"
variable TYPE v5p-256 "TPUs: accelerator type of a slice; the next four are by default what it says"
variable TPU "" "node label cloud.google.com/gke-tpu-accelerator"
variable TPU_TOPOLOGY "" "of a slice; node label cloud.google.com/gke-tpu-topology"
variable TPU_HOSTS "" "of a slice: chips of the topology / chips of a host"
variable TPU_CHIPS "" "of a host"
variable TPU_SLICES 1 "slices, each a node pool of its own, over the data-centre network"
variable GPU NVIDIA-H100-80GB-HBM3 "GPUs: node label nvidia.com/gpu.product"
variable GPU_HOSTS 4 "nodes"
variable GPUS 8 "of a node"
declare_flags

read_arguments launch/kubernetes.sh "$MODULE" "$@"
read_slice "$TYPE"
check_slices "$TPU_SLICES" TPU_SLICES

name='[a-z]([a-z0-9-]{0,38}[a-z0-9])?' whole='[1-9][0-9]*'
check_word NAME "$NAME" "$name" "at most 40 small letters, digits and -, beginning with a letter"
for number in GRACE MAX_RESTARTS GPU_HOSTS GPUS ${TPU_HOSTS:+TPU_HOSTS} ${TPU_CHIPS:+TPU_CHIPS}; do
    check_word "$number" "${!number}" "$whole|0" "a whole number"
done
for text in IMAGE MEMORY DATA_CLAIM LOCAL_PATH TPU TPU_TOPOLOGY GPU; do
    check_word "$text" "${!text}" '[A-Za-z0-9_./:@-]*' "of letters, digits and _./:@-"
done

# Any text as a YAML string, of which Kubernetes expands nothing.
quoted() {
    local text="${1//\\/\\\\}"
    text="${text//\$/\$\$}"
    printf '"%s"' "${text//\"/\\\"}"
}

# Of --min-processes, which a Job has to know: it has succeeded when so many have.
least=''
for word in "${arguments[@]}"; do
    [[ $word == --min-processes=* ]] && least=${word#*=}
    if [[ $word == --min-processes* && ($ACCELERATOR != gpu || ! $least =~ ^($whole)$ || $least -gt $GPU_HOSTS) ]]; then
        echo "error: $word: must be --min-processes=N, N at most GPU_HOSTS, with ACCELERATOR=gpu: slices run whole" >&2
        exit 2
    fi
done

# What differs between the two.
case "$ACCELERATOR" in
    tpu)
        use_flags tpu
        slices=$TPU_SLICES hosts=${TPU_HOSTS:-$slice_hosts} resource=google.com/tpu chips=${TPU_CHIPS:-$slice_chips}
        # A slice is a node pool of its own; its hosts find each other by what the cluster writes into the environment.
        annotations="alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
        selector="
                cloud.google.com/gke-tpu-accelerator: ${TPU:-$slice_label}
                cloud.google.com/gke-tpu-topology: ${TPU_TOPOLOGY:-$slice_shape}"
        # The device files of TPUs belong to root.
        security="{runAsUser: 0, privileged: true}"
        environment="
                    - {name: LIBTPU_INIT_ARGS, value: $(quoted "$LIBTPU_INIT_ARGS")}"
        ;;
    gpu)
        use_flags gpu
        slices=1 hosts=$GPU_HOSTS resource=nvidia.com/gpu chips=$GPUS
        annotations="{}"
        selector="
                nvidia.com/gpu.product: $GPU"
        security="{runAsUser: 1000, runAsNonRoot: true, allowPrivilegeEscalation: false}"
        environment="
                    - {name: XLA_FLAGS, value: $(quoted "$XLA_FLAGS")}
                    - {name: XLA_PYTHON_CLIENT_MEM_FRACTION, value: $(quoted "$XLA_PYTHON_CLIENT_MEM_FRACTION")}
                    - {name: JAX_COORDINATOR_ADDRESS, value: \"$NAME-hosts-0-0.$NAME:8482\"}
                    - {name: JAX_NUM_PROCESSES, value: \"$hosts\"}
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}"
        ;;
    *)
        echo "error: ACCELERATOR is '$ACCELERATOR'; it must be tpu or gpu" >&2
        exit 2
        ;;
esac

success=''
if [[ -n $least ]]; then
    success="
          successPolicy: {rules: [{succeededCount: $least}]} # a pod whose node is gone never does"
fi

# A folder of the nodes outlives the pods, which a restart makes anew. With GPUs user 1000 must be able to write there.
mount='' volume=''
if [[ -n $LOCAL_PATH ]]; then
    mount="
                    - {name: local, mountPath: /local}"
    volume="
                - {name: local, hostPath: {path: $(quoted "$LOCAL_PATH"), type: DirectoryOrCreate}}"
fi
if [[ -n $DATA_CLAIM ]]; then
    mount+="
                    - {name: data, mountPath: /data, readOnly: true}"
    volume+="
                - {name: data, persistentVolumeClaim: {claimName: $DATA_CLAIM, readOnly: true}}"
fi

manifest() {
    local word words=
    for word in "$@"; do
        words+=", $(quoted "$word")"
    done
    cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    $annotations
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    restartStrategy: BlockingRecreate # no new process while an old one may still write
    rules:
      - name: giveUp
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
      - name: startAgain
        action: RestartJobSet
        onJobFailureReasons: [BackoffLimitExceeded]
  replicatedJobs:
    - name: hosts
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed$success
          backoffLimit: 0 # no host can go on alone: the first failure ends the Job, and the JobSet starts all again
          podFailurePolicy:
            rules:
              - action: FailJob # reason PodFailurePolicy: give up
                onExitCodes: {containerName: train, operator: In, values: [1, 2]}
              - action: Count # reason BackoffLimitExceeded, as for all other codes: start again
                onExitCodes: {containerName: train, operator: In, values: [75]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $GRACE
              nodeSelector:$selector
              tolerations:
                - {key: $resource, operator: Exists, effect: NoSchedule}
              containers:
                - name: train
                  image: $IMAGE
                  args: ["-m", "$MODULE"$words]
                  env:$environment
                  ports:
                    - {containerPort: 8471} # between the hosts of a TPU slice
                    - {containerPort: 8482} # of JAX's coordinator, on the first host
                  resources:
                    requests: {memory: $MEMORY}
                    limits: {$resource: $chips}
                  securityContext: $security
                  volumeMounts:
                    - {name: shared-memory, mountPath: /dev/shm}$mount
              volumes:
                - {name: shared-memory, emptyDir: {medium: Memory}} # the default of 64 MB is too little for NCCL$volume
EOF
}

if ((dry_run)); then
    manifest "${arguments[@]}"
else
    manifest "${arguments[@]}" | kubectl apply --filename=-
fi
