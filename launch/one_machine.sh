#!/usr/bin/env bash
# Both stages, one after the other, on the devices of one machine.
#
#   launch/one_machine.sh WRITE_RECIPE JUDGE_RECIPE [--set key=value ...]
#   DRY_RUN=1 launch/one_machine.sh ...        print the commands and run nothing
#
# Started again after an interruption it goes on where it stopped: a finished run says so and ends at once.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
write_recipe=$1
judge_recipe=$2
shift 2

run() {
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

run "${GRAM_JAX:-gram-jax}" train "$write_recipe" "$@"
run "${GRAM_JAX:-gram-jax}" train "$judge_recipe" "$@"
