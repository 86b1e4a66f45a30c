#!/usr/bin/env bash
# Run recipes one after the other, each in one process that uses every device of this machine.
#
#   launch/one_machine.sh RECIPE [RECIPE ...] [options of the command]
#
#   DRY_RUN=1        print the commands and run nothing
#   RESTARTS=N       restart up to N times in all if a run asks for it or is killed (default 0)
#   RESTART_DELAY=S  seconds before each restart (default 5)
#   COMMAND=NAME     train or rl (default train)
#   GRAM_JAX=PATH    the program (default gram-jax)
#
# The same command resumes after an interruption: a finished run ends at once. SIGTERM is passed on to the run, and
# nothing is started after it; the exit status is that of the run that did not finish.
set -uo pipefail

recipes=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    recipes+=("$1")
    shift
done
if [ ${#recipes[@]} -eq 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
program=${GRAM_JAX:-gram-jax}
subcommand=${COMMAND:-train}
case $subcommand in train | rl) ;; *)
    echo "one_machine.sh: COMMAND=$subcommand: expected train or rl" >&2
    exit 2
    ;;
esac
restarts=${RESTARTS:-0}
# Numbers are checked before anything runs.
whole() { # NAME VALUE LEAST
    case $2 in '' | *[!0-9]* | 0?*) ;; *) [ "$2" -lt "$3" ] || return 0 ;; esac
    echo "one_machine.sh: $1=$2: expected a whole number from $3" >&2
    exit 2
}
whole RESTARTS "$restarts" 0

# Recipes are checked before anything runs: a file, or a name that the program lists.
for recipe in "${recipes[@]}"; do
    [ ! -f "$recipe" ] || continue
    case $recipe in
        */* | *.toml) ;;
        *) if "$program" recipe "$recipe" >/dev/null; then continue; fi ;;
    esac
    echo "one_machine.sh: there is no recipe $recipe: expected a file, or a name that gram-jax recipe lists" >&2
    exit 2
done

# Exit statuses after which a run is started again: 75 and 76 ask for it, the others are deaths by a signal (ABRT, BUS,
# KILL, SEGV, TERM). Every launcher has this list.
is_worth_another_start() {
    case $1 in 75 | 76 | 134 | 135 | 137 | 139 | 143) return 0 ;; esac
    return 1
}

child=
stopped=
cut_short=
pass_on_sigterm() { # once: a scheduler may repeat the signal while the run saves
    cut_short=yes
    if [ -z "$stopped" ]; then
        stopped=yes
        [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    fi
}
trap pass_on_sigterm TERM
trap 'cut_short=yes stopped=yes' INT # the terminal sends Ctrl-C to the run itself

run() { # a command to its end, also if a trap interrupts the wait; its exit status
    local code
    # A shell makes its background commands ignore Ctrl-C; the inner trap undoes that.
    (
        trap - INT TERM
        exec "$@"
    ) &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # SIGTERM came during the start
    while :; do
        cut_short=
        code=0
        wait "$child" || code=$?
        [ -n "$cut_short" ] || break
    done
    child=
    return "$code"
}

for recipe in "${recipes[@]}"; do
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$program" "$subcommand" "$recipe" "$@"
        printf '\n'
        continue
    fi
    while :; do
        [ -z "$stopped" ] || exit 75
        run "$program" "$subcommand" "$recipe" "$@" && break
        code=$?
        is_worth_another_start "$code" && [ -z "$stopped" ] && [ "$restarts" -gt 0 ] || exit "$code"
        restarts=$((restarts - 1))
        echo "one_machine.sh: $recipe ended with status $code: starting again ($restarts restarts left)" >&2
        sleep "${RESTART_DELAY:-5}"
    done
done
