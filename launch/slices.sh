# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set is for the scripts that source this file
# Sourced by the scripts for TPUs: `read_slice TYPE` reads the table of slices, tim_jax/system/slices.txt, and sets
# slice_type, slice_shape, slice_hosts, slice_chips (of a host), slice_label (of GKE's nodes) and slice_runtime (of a TPU
# VM). A type that is not there is answered with the nearest, and exit code 2.

read_slice() {
    local given="$1" family number type shape hosts chips count near=() below=0 above=0
    slice_type="${given/#v5e-/v5litepod-}" slice_shape=
    family="${slice_type%-*}" number="${slice_type##*-}"
    while read -r type shape hosts chips; do
        if [[ $type == "$slice_type" ]]; then
            slice_shape=$shape slice_hosts=$hosts slice_chips=$chips
        elif [[ $type == "$family"-* && $number =~ ^[0-9]+$ ]]; then
            ((${type##*-} < number)) && below=${type##*-}
            ((above == 0 && ${type##*-} > number)) && above=${type##*-}
        fi
    done <tim_jax/system/slices.txt
    if [[ -z $slice_shape ]]; then
        for count in "$below" "$above"; do ((count)) && near+=("${given%-*}-$count"); done
        ((${#near[@]})) || near=(v4-8 v5e-16 v5p-64 v6e-16)
        echo "error: TYPE is $given; it must be the name of a slice, such as ${near[*]}" >&2
        exit 2
    fi
    case "$family" in
        v4) slice_label=tpu-v4-podslice slice_runtime=tpu-ubuntu2204-base ;;
        v5litepod) slice_label=tpu-v5-lite-podslice slice_runtime=v2-alpha-tpuv5-lite ;;
        v5p) slice_label=tpu-v5p-slice slice_runtime=v2-alpha-tpuv5 ;;
        v6e) slice_label=tpu-v6e-slice slice_runtime=v2-alpha-tpuv6e ;;
    esac
}

check_slices() {
    if [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
        echo "error: $2 is $1; it must be a whole number of at least 1" >&2
        exit 2
    fi
}
