# shellcheck shell=bash
# Sourced by the other scripts: `run COMMAND…` runs a command or, where dry_run is 1, prints it as it could be typed;
# `note TEXT` adds a comment to what is printed; `usage FILE` prints the comment at the head of a script.

dry_run=0

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
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}
