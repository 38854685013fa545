# shellcheck shell=bash
# Sourced by the other scripts: `read_arguments FILE MODULE ARGUMENT…` reads what they were given; `run COMMAND…` runs a
# command or, where dry_run is 1, prints it as it could be typed; `note TEXT` adds a comment to what is printed; `usage
# FILE` prints the comment at the head of a script, and its variables; `variable NAME DEFAULT TEXT` declares one.

dry_run=0
arguments=()
variables=()

# NAME is as the environment has it, else DEFAULT; --help lists it with both. All that a script reads of the environment
# is declared by this, but for what clusters set.
variable() {
    printf -v "$1" '%s' "${!1:-$2}"
    variables+=("$1" "$2" "$3")
}

# Nothing but `variable` may come before this. `--help`, wherever it stands, prints what `usage` says and ends the
# script; `--dry-run`, wherever it stands, sets dry_run. All other words become `arguments`. A flag that no command of
# tim_jax has ends the script with exit code 2: a misspelt --dry-run, above all, must not book machines. Flags of another
# MODULE are its own.
read_arguments() {
    local file="$1" module="$2" word
    check_word MODULE "$module" '[A-Za-z_][A-Za-z0-9_.]*' 'the name of a module of Python'
    for word in "${@:3}"; do
        if [[ $word == --help || $word == -h ]]; then
            usage "$file"
            exit 0
        fi
    done
    for word in "${@:3}"; do
        if [[ $word == --dry-run ]]; then
            dry_run=1
            continue
        fi
        if [[ $word == *[[:cntrl:]]* ]]; then
            printf 'error: %q: must have no control characters\n' "$word" >&2
            exit 2
        fi
        if ! known "$module" "$word"; then
            echo "error: $word: no such argument; see bash $file --help" >&2
            exit 2
        fi
        arguments+=("$word")
    done
}

# check_word NAME VALUE PATTERN WHAT ends the script with exit code 2 where the value is not all of what the pattern says.
check_word() {
    if [[ ! $2 =~ ^($3)$ ]]; then
        printf 'error: %s is %q; it must be %s\n' "$1" "$2" "$4" >&2
        exit 2
    fi
}

# Whether a word is no flag, an override, or a flag that a command of tim_jax has, by the source code beside this file.
known() {
    local flag="${2%%=*}" sources
    sources="$(dirname "${BASH_SOURCE[0]}")/../tim_jax"
    [[ $flag =~ ^--(dry|help) ]] && return 1
    [[ $flag != -* || $flag =~ ^-[0-9.] || $flag == --config.* ]] && return 0
    [[ $1 != tim_jax.* || ! -d $sources ]] && return 0
    [[ $flag =~ ^--[a-z-]+$ ]] && grep --recursive --quiet --include='*.py' --regexp="\"$flag\"" "$sources"
}

run() {
    if ((dry_run)); then
        typed "$@"
        echo
    else
        "$@"
    fi
}

note() {
    if ((dry_run)); then
        echo "# $*"
    fi
}

# Words in quotes where the shell would read them otherwise.
typed() {
    local word space=
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
        printf '%s%s' "$space" "$word"
        space=' '
    done
}

usage() {
    sed -n '/^#SBATCH/d; /^# shellcheck/d; 2,/^[^#]/s/^# \{0,1\}//p' "$1"
    ((${#variables[@]})) || return 0
    printf '\nvariables of the environment, with their defaults:\n'
    local i
    for ((i = 0; i < ${#variables[@]}; i += 3)); do
        printf '  %-38s %s\n' "${variables[i]}=${variables[i + 1]}" "${variables[i + 2]}"
    done
}
