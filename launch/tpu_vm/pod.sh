#!/usr/bin/env bash
# Train on TPU VMs, from a machine with gcloud.
#
#   NAME=judge ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite SHARE=10.0.0.2:/share \
#       launch/tpu_vm/pod.sh train RECIPE [RECIPE ...] [options of gram-jax train]
#
# train does all of the following, and again with new machines if Spot machines are reclaimed; each is also a command:
#   create            request the machines (a queued resource)
#   await             wait until they are active
#   install           the package of this working tree, and the shared folder at /mnt/gram, on every worker
#   run RECIPE ...    start the recipes in the background on every worker, in the shared folder
#   watch             wait until the run has ended everywhere; exit status 0, or that of the run
#   status            state of the machines, and of the run on each worker
#   logs [WORKER]     of a worker (default all)
#   stop              SIGTERM to the run: it saves and ends
#   delete            the machines
#
#   DRY_RUN=1         print the commands and run nothing
#   PROJECT=ID        default: that of gcloud
#   SPOT=1            Spot machines, which may be reclaimed
#   SLICES=N          of that type, joined over the data-centre network (default 1); several need --set
#                     mesh.dcn.data=N, or [mesh.dcn] in every recipe
#   SHARE=HOST:/PATH  an NFS export (Filestore, say) that all workers write; recipes name paths in it
#   RESTARTS=N        new machines up to N times, and up to N restarts on the same machines (default 20)
#   GRACE=S           seconds for a run to save after SIGTERM (default 20)
#   POLL=S            seconds between two queries (default 30)
#
# Recipes are files on this machine; they are copied to every worker.
set -euo pipefail

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
fail() {
    echo "pod.sh: $*" >&2
    exit 2
}
action=${1:-}
[ -n "$action" ] || usage
shift
: "${NAME:?the name of the machines, as NAME=judge}" "${ZONE:?the zone, as ZONE=us-west4-a}"
slices=${SLICES:-1}
restarts=${RESTARTS:-20}
grace=${GRACE:-20}
# Numbers are checked before anything runs.
whole() { # NAME VALUE LEAST
    case $2 in '' | *[!0-9]* | 0?*) ;; *) [ "$2" -lt "$3" ] || return 0 ;; esac
    echo "pod.sh: $1=$2: expected a whole number from $3" >&2
    exit 2
}
whole SLICES "$slices" 1
whole RESTARTS "$restarts" 0
whole GRACE "$grace" 1
root=$(cd "$(dirname "$0")/../.." && pwd)
place=(--zone="$ZONE")
[ -z "${PROJECT:-}" ] || place+=(--project="$PROJECT")
nodes=("$NAME")
if [ "$slices" -gt 1 ]; then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$NAME-$i"); done
fi

do_it() {
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# One command on all workers of all slices, on the slices at the same time.
on_workers() {
    local node code=0
    local pids=()
    for node in "${nodes[@]}"; do
        if [ -n "${DRY_RUN:-}" ]; then
            do_it gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --command="$1"
        else
            gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --command="$1" &
            pids+=($!)
        fi
    done
    # In bash before 4.4, such as that of macOS, an empty array is unset.
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
    return "$code"
}

create() {
    : "${TYPE:?the accelerator type, as TYPE=v5litepod-16}" "${RUNTIME:?the image, as RUNTIME=v2-alpha-tpuv5-lite}"
    local which=(--node-id="$NAME") spot=()
    [ "$slices" -eq 1 ] || which=(--node-count="$slices" --node-prefix="$NAME")
    [ -z "${SPOT:-}" ] || spot=(--spot)
    do_it gcloud compute tpus queued-resources create "$NAME" "${place[@]}" "${which[@]}" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${spot[@]+"${spot[@]}"}
}

# State of the machines: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ... or ABSENT. A failed query is repeated: taking it
# for ABSENT would end a healthy run.
state() {
    local answer errors
    errors=$(mktemp)
    until answer=$(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
        --format='value(state.state)' 2>"$errors"); do
        if grep -qi -e NOT_FOUND -e 'not found' "$errors"; then
            answer=ABSENT
            break
        fi
        cat "$errors" >&2
        sleep "${POLL:-30}"
    done
    rm -f "$errors"
    echo "$answer"
}

are_there() {
    local now
    now=$(state)
    [ "$now" = ACTIVE ] || echo "pod.sh: the machines are $now, expected ACTIVE" >&2
    [ "$now" = ACTIVE ]
}

await() {
    if [ -n "${DRY_RUN:-}" ]; then
        do_it gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" --format='value(state.state)'
        return
    fi
    local now
    while :; do
        now=$(state)
        case $now in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT)
                echo "pod.sh: the machines are $now, expected ACTIVE" >&2
                return 76
                ;;
        esac
        echo "pod.sh: waiting for the machines: $now" >&2
        sleep "${POLL:-30}"
    done
}

# Python 3.12, because the images have 3.10 and the package needs 3.11.
install() {
    : "${SHARE:?an NFS export that all workers write, as SHARE=10.0.0.2:/share}"
    local archive node
    archive=${TMPDIR:-/tmp}/gram-jax-$NAME.tar.gz
    do_it tar -czf "$archive" -C "$root" --exclude=__pycache__ pyproject.toml README.md LICENSE \
        gram_jax configs launch
    for node in "${nodes[@]}"; do
        do_it gcloud compute tpus tpu-vm scp "$archive" "$node:gram-jax.tar.gz" "${place[@]}" --worker=all
    done
    on_workers "set -e
sudo apt-get -qq update
sudo apt-get -qq install -y nfs-common
sudo mkdir -p /mnt/gram
mountpoint -q /mnt/gram || sudo mount -t nfs $(printf %q "$SHARE") /mnt/gram
rm -rf gram-jax
mkdir gram-jax
tar -xzf gram-jax.tar.gz -C gram-jax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 venv
python3 -m uv pip install --quiet --python venv/bin/python './gram-jax[tpu]'"
}

# Read the leading words as recipes, and check before machines are requested that their names differ and that they are
# for this number of slices.
names=()
read_recipes() {
    local recipe twins
    names=()
    while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
        [ -f "$1" ] || fail "there is no recipe file $1: gram-jax recipe NAME > NAME.toml writes one that ships with gram_jax"
        names+=("$1")
        shift
    done
    [ ${#names[@]} -gt 0 ] || usage
    twins=$(for recipe in "${names[@]}"; do basename "$recipe"; done | sort | uniq -d)
    [ -z "$twins" ] || fail "two recipes are called $twins: on the workers one would replace the other"
    [ "$slices" -gt 1 ] || return 0
    case " $*" in *[\ =]mesh.dcn.*) return 0 ;; esac
    for recipe in "${names[@]}"; do
        grep -Eq '^[[:space:]]*(\[mesh\.dcn\]|dcn(\.[a-z]+)?[[:space:]]*=)' "$recipe" ||
            fail "SLICES=$slices, and $recipe has no [mesh.dcn], the mesh over the slices: add --set" \
                "mesh.dcn.data=$slices"
    done
}

# systemd keeps the run alive after ssh ends, and sends it SIGTERM when the machine is reclaimed: with KillMode=mixed to
# the runner alone, which passes it on once. A run that has ended stays listed, so that watch can read its status.
run() {
    local recipe node words
    read_recipes "$@"
    shift ${#names[@]}
    on_workers "mkdir -p recipes"
    for node in "${nodes[@]}"; do
        do_it gcloud compute tpus tpu-vm scp "${names[@]}" "$node:recipes/" "${place[@]}" --worker=all
    done
    words=$(
        # shellcheck disable=SC2016  # the worker's home
        for recipe in "${names[@]}"; do printf '"$HOME"/recipes/%q ' "$(basename "$recipe")"; done
        printf '%q ' --grace "$grace" "$@"
    )
    on_workers "set -e
sudo systemctl stop gram-jax 2>/dev/null || true
sudo systemctl reset-failed gram-jax 2>/dev/null || true
sudo systemd-run --quiet --unit=gram-jax --uid=\"\$(id -u)\" --working-directory=/mnt/gram --remain-after-exit \\
    --property=KillMode=mixed --property=TimeoutStopSec=$((grace + 5)) \\
    --setenv=HOME=\"\$HOME\" --setenv=GRAM_JAX=\"\$HOME\"/venv/bin/gram-jax --setenv=RESTARTS=$restarts \\
    bash \"\$HOME\"/gram-jax/launch/one_machine.sh $words"
}

# A line for each worker: "run SUBSTATE STATUS", as "run running 0", "run exited 0", "run failed 2".
# shellcheck disable=SC2016  # expanded on the worker
ask='echo run $(systemctl show gram-jax --property=SubState --value) \
    $(systemctl show gram-jax --property=ExecMainStatus --value)'

watch() {
    if [ -n "${DRY_RUN:-}" ]; then
        on_workers "$ask"
        return
    fi
    local found codes look
    while :; do
        are_there || return 76
        # A failed ssh is repeated while the machines are active.
        found=$(on_workers "$ask" 2>/dev/null | grep '^run ') || found=
        if [ -n "$found" ] && ! grep -qv -e ' exited ' -e ' failed ' <<<"$found"; then
            codes=$(awk '$3 != 0 { print $3 }' <<<"$found" | sort -nu)
            [ -n "$codes" ] || return 0
            echo "pod.sh: the run ended with status $(paste -sd' ' - <<<"$codes")" >&2
            # The runner on the workers restarts by itself, except after SIGTERM. Whether that was `stop` or the
            # machines are being reclaimed shows in their state a little later.
            if [ "$codes" = 75 ]; then
                for ((look = 0; look < 4; look++)); do
                    sleep "${POLL:-30}"
                    are_there || return 76
                done
            fi
            # A status that a restart would not fix comes first.
            return "$(grep -vxE '75|76|134|135|137|139|143' <<<"$codes" | head -n 1 | grep . || head -n 1 <<<"$codes")"
        fi
        sleep "${POLL:-30}"
    done
}

delete() {
    do_it gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
}

train() {
    local code left=$restarts
    read_recipes "$@"
    while :; do
        if [ -n "${DRY_RUN:-}" ] || [ "$(state)" = ABSENT ]; then create; fi
        # Each in a shell of its own, which ends at the first command that fails.
        code=0
        { "$0" await && "$0" install && "$0" run "$@" && "$0" watch; } || code=$?
        if [ "$code" -eq 0 ]; then
            delete
            return 0
        fi
        # Only reclaimed machines are replaced: a failure on active machines needs a correction.
        if [ "$(state)" = ACTIVE ] || [ "$left" -eq 0 ]; then
            echo "pod.sh: ended with status $code; the machines are kept: see 'logs', and 'delete' them" >&2
            return "$code"
        fi
        left=$((left - 1))
        echo "pod.sh: requesting new machines ($left requests left)" >&2
        delete
    done
}

case $action in
    create | await | install | run | watch | stop | delete | train | status | logs) ;;
    *) usage ;;
esac
case $action in
    status)
        do_it gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" --format='value(state.state)'
        on_workers "$ask"
        ;;
    logs)
        for node in "${nodes[@]}"; do
            do_it gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker="${1:-all}" \
                --command='sudo journalctl --unit=gram-jax --output=cat --no-pager'
        done
        ;;
    stop) on_workers 'sudo systemctl kill --kill-who=main --signal=TERM gram-jax' ;;
    *) "$action" "$@" ;;
esac
