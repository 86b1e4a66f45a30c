#!/usr/bin/env bash
# Run recipes one after the other, each in N processes on this machine that connect over loopback.
#
#   launch/local_processes.sh N RECIPE [RECIPE ...] [options of the command]
#
#   DRY_RUN=1        print the commands and run nothing
#   LOGS=FOLDER      process I writes FOLDER/process-I.log (default logs)
#   RESTARTS=N       restart all up to N times in all if they ask for it or one is killed (default 0)
#   RESTART_DELAY=S  seconds before each restart (default 5)
#   GRACE=S          seconds for all to save and end after SIGTERM (default 30)
#   LINGER=S         seconds until the others are killed after one failed (default 5)
#   PORT=P           of the coordinator (default: a free one)
#   COMMAND=NAME     train or rl (default train)
#   GRAM_JAX=PATH    the program (default gram-jax)
#
# Process I uses GPU I; on a machine without GPUs, set JAX_PLATFORMS=cpu. SIGTERM is passed on to all, and nothing is
# started after it. The exit status is 0 if all finished, else the first that a restart would not fix, else the first
# that asks for a restart.
set -uo pipefail

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
case ${1:-} in '' | *[!0-9]* | 0*) usage ;; esac
count=$1
shift
recipes=()
while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
    recipes+=("$1")
    shift
done
[ ${#recipes[@]} -gt 0 ] || usage
program=${GRAM_JAX:-gram-jax}
subcommand=${COMMAND:-train}
case $subcommand in train | rl) ;; *)
    echo "local_processes.sh: COMMAND=$subcommand: expected train or rl" >&2
    exit 2
    ;;
esac
logs=${LOGS:-logs}
restarts=${RESTARTS:-0}
# Numbers are checked before anything runs.
whole() { # NAME VALUE LEAST
    case $2 in '' | *[!0-9]* | 0?*) ;; *) [ "$2" -lt "$3" ] || return 0 ;; esac
    echo "local_processes.sh: $1=$2: expected a whole number from $3" >&2
    exit 2
}
whole RESTARTS "$restarts" 0
whole GRACE "${GRACE:-30}" 0
whole LINGER "${LINGER:-5}" 0

# Recipes are checked before anything runs: a file, or a name that the program lists.
for recipe in "${recipes[@]}"; do
    [ ! -f "$recipe" ] || continue
    case $recipe in
        */* | *.toml) ;;
        *) if "$program" recipe "$recipe" >/dev/null; then continue; fi ;;
    esac
    echo "local_processes.sh: there is no recipe $recipe: expected a file, or a name that gram-jax recipe lists" >&2
    exit 2
done

# Exit statuses after which a run is started again: 75 and 76 ask for it, the others are deaths by a signal (ABRT, BUS,
# KILL, SEGV, TERM). Every launcher has this list.
is_worth_another_start() {
    case $1 in 75 | 76 | 134 | 135 | 137 | 139 | 143) return 0 ;; esac
    return 1
}

pids=() # of the running processes, by their number
deadline=
stopped=
end_within() { # seconds until running processes are killed; an earlier deadline stays
    local at=$((SECONDS + $1))
    if [ -z "$deadline" ] || [ "$at" -lt "$deadline" ]; then deadline=$at; fi
}
pass_on_sigterm() { # once: a scheduler may repeat the signal while the runs save
    if [ -z "$stopped" ]; then
        stopped=yes
        end_within "${GRACE:-30}"
        [ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null
    fi
}
trap pass_on_sigterm TERM
trap 'stopped=yes; end_within "${GRACE:-30}"' INT # the terminal sends Ctrl-C to the runs themselves

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000)) # below Linux's ephemeral ports
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
        (exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null || break # JAX's own
    done
    echo "$port"
}

# One recipe in all processes; the exit status as above.
run_all() {
    local port index code verdict=0 killed=
    port=${PORT:-$(free_port)}
    deadline=
    pids=()
    for ((index = 0; index < count; index++)); do
        # A shell makes its background commands ignore Ctrl-C; the inner trap undoes that.
        (
            trap - INT TERM
            export GRAM_JAX_COORDINATOR=127.0.0.1:$port GRAM_JAX_PROCESSES=$count GRAM_JAX_PROCESS=$index
            export JAX_LOCAL_DEVICE_IDS=$index
            exec "$@" >>"$logs/process-$index.log" 2>&1 </dev/null
        ) &
        pids[index]=$!
    done
    if [ -n "$stopped" ]; then # SIGTERM came during the start
        end_within "${GRACE:-30}"
        kill -TERM "${pids[@]}" 2>/dev/null
    fi
    while [ ${#pids[@]} -gt 0 ]; do
        for index in "${!pids[@]}"; do
            kill -0 "${pids[index]}" 2>/dev/null && continue
            code=0
            wait "${pids[index]}" || code=$?
            unset "pids[index]"
            [ "$code" -ne 0 ] && [ -z "$killed" ] || continue
            echo "local_processes.sh: process $index ended with status $code; the end of $logs/process-$index.log:" >&2
            tail -n 5 "$logs/process-$index.log" >&2
            # After 75 the others are saving the same step; after anything else they cannot continue.
            if [ "$code" -eq 75 ]; then end_within "${GRACE:-30}"; else end_within "${LINGER:-5}"; fi
            if [ "$verdict" -eq 0 ] || { is_worth_another_start "$verdict" && ! is_worth_another_start "$code"; }; then
                verdict=$code
            fi
        done
        if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ] && [ ${#pids[@]} -gt 0 ]; then
            [ -n "$killed" ] || echo "local_processes.sh: killing process ${!pids[*]}" >&2
            killed=yes
            if [ "$verdict" -eq 0 ]; then verdict=137; fi # none stopped in time
            kill -KILL "${pids[@]}" 2>/dev/null
        fi
        sleep 0.2
    done
    return "$verdict"
}

for recipe in "${recipes[@]}"; do
    if [ -n "${DRY_RUN:-}" ]; then
        for ((index = 0; index < count; index++)); do
            printf '%s=%q ' GRAM_JAX_COORDINATOR "127.0.0.1:${PORT:-PORT}" GRAM_JAX_PROCESSES "$count" \
                GRAM_JAX_PROCESS "$index" JAX_LOCAL_DEVICE_IDS "$index"
            printf '%q ' "$program" "$subcommand" "$recipe" "$@"
            printf '>>%q\n' "$logs/process-$index.log"
        done
        continue
    fi
    mkdir -p "$logs"
    while :; do
        [ -z "$stopped" ] || exit 75
        run_all "$program" "$subcommand" "$recipe" "$@" && break
        code=$?
        is_worth_another_start "$code" && [ -z "$stopped" ] && [ "$restarts" -gt 0 ] || exit "$code"
        restarts=$((restarts - 1))
        echo "local_processes.sh: $recipe: starting all again ($restarts restarts left)" >&2
        sleep "${RESTART_DELAY:-5}"
    done
done
