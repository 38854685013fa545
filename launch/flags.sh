# shellcheck shell=bash
# The accelerator flags that matter when training over many chips, each with why. Sourced by the other scripts:
# `use_flags tpu` and `use_flags gpu` export them. What LIBTPU_INIT_ARGS or XLA_FLAGS already hold comes after them,
# and the last value of a flag counts; `declare_flags` lists them in --help. An unknown flag ends the process at once: after an update of JAX, run the tests.

tpu_flags=(
    # Orders the program so that a collective starts early, is waited for late, and computation runs meanwhile.
    --xla_tpu_enable_latency_hiding_scheduler=true
    # Splits gathers of sharded parameters into a start and an end, without which nothing can run beside them.
    --xla_enable_async_all_gather=true
    # Lets a collective advance inside the computation beside it, for chips that cannot run the two separately.
    --xla_tpu_enable_async_collective_fusion=true
    # The same for gathers of parameters, the most frequent collective of fully sharded training.
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    # Spreads one collective over several computations: a layer's gather is longer than any one of its products.
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    # Lets the tensor core work on while a collective is under way.
    --xla_tpu_overlap_compute_collective_tc=true
    # Delays the all-reduce of gradients between slices, the slowest links, into the computation that follows.
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    # The same where the gradients differ in size, as those of a layer do.
    --xla_tpu_data_parallel_opt_different_sized_ops=true
)

gpu_flags=(
    # Orders the program so that a collective starts early, is waited for late, and computation runs meanwhile.
    --xla_gpu_enable_latency_hiding_scheduler=true
    # Gathers the next layer's parameters while this layer of the scan computes.
    --xla_gpu_enable_pipelined_all_gather=true
    # Scatters a layer's gradients while the layer before it computes its own.
    --xla_gpu_enable_pipelined_reduce_scatter=true
    # The same for gradients that are only summed: the data axis.
    --xla_gpu_enable_pipelined_all_reduce=true
    # Two sets of buffers for the scan over layers, so that one is filled while the other is read.
    --xla_gpu_enable_while_loop_double_buffering=true
    # Joins small tensors into messages of up to 128 MiB: the links are fast for large messages only.
    --xla_gpu_all_gather_combine_threshold_bytes=134217728
    --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)

# Part of a GPU's memory that JAX takes at the start; its own choice of 0.75 leaves a quarter unused.
gpu_memory_fraction=0.92

# For tpu, gpu, or without an argument for both; after launch/run.sh.
declare_flags() {
    [[ ${1:-} == gpu ]] || variable LIBTPU_INIT_ARGS "" "more flags of the TPU compiler"
    [[ ${1:-} == tpu ]] && return
    variable XLA_FLAGS "" "more flags of the GPU compiler"
    variable XLA_PYTHON_CLIENT_MEM_FRACTION "$gpu_memory_fraction" "part of a GPU's memory that JAX takes at the start"
}

use_flags() {
    case "$1" in
        tpu) export LIBTPU_INIT_ARGS="${tpu_flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
        gpu)
            export XLA_FLAGS="${gpu_flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
            export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-$gpu_memory_fraction}"
            ;;
        *)
            echo "error: use_flags $1: must be tpu or gpu" >&2
            return 2
            ;;
    esac
}
