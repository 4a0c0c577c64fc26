#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A training run on a Cloud TPU slice, from the operator's machine, which needs gcloud, git, coreutils, and this package
# in .venv (pip install -e .) or where PYTHON=... says.
#
#   bash scripts/tpu_pod.sh watch --name=albert --zone=us-east5-b --accelerator=v6e-16 --spot \
#       -- --config=configs/large.py --workdir=gs://BUCKET/large --config.data.path=gs://BUCKET/data
#
#   watch     creates, installs, launches and looks after the run until it has finished: where the slice is preempted
#             or a worker is lost, all of it again, and the same command resumes. Ending watch leaves the run as it is.
#   create    asks for the slice and waits until it is there
#   install   brings the last commit of this checkout and its packages to all workers
#   launch    starts train.py on all workers, with what follows --; it outlives the connection
#   status    of the slice, and of the job on each worker
#   logs      the end of a worker's log; what follows -- is given to tail: -- -n 500, -- -f
#   stop      SIGTERM to all workers, so that they save and leave with status 75; ends watch too
#   delete    gives the slice back
#
#   --name=NAME              of the queued resource and of its node
#   --zone=ZONE              --project=PROJECT where it is not gcloud's own
#   --accelerator=TYPE       v5e-16 (or v5litepod-16), v5p-8, v6e-16, ...
#   --spot                   cheaper, and taken away at any time
#   --runtime=VERSION        of the TPU's software; chosen by the accelerator unless given
#   --service-account=EMAIL  needs read access to the data and write access to the workdir
#   --create-flag=FLAG       a further flag of gcloud's create, such as --create-flag=--internal-ips; repeatable
#   --connect-flag=FLAG      a further flag of gcloud's ssh and scp, such as --connect-flag=--internal-ip; repeatable
#   --env=NAME=VALUE         for train.py on all workers; repeatable
#   --repository=URL         workers clone the commit from there; otherwise it is copied to them
#   --patience=HOURS         how long to wait for the slice, 24 unless given
#   --restarts=N             watch gives up after so many in a row without a newer checkpoint, 10 unless given
#   --worker=N               whose log, 0 unless given
#   --dry-run                prints the commands and runs none
#
# Before anything is created or launched, train.py's flags are checked here, and data on gs:// too, as far as they can be
# reached from here; data on a worker's disk cannot.
#
# Exit status of watch: 0 the run has finished, 75 it was stopped and saved, 2 a bad input or too
# little memory of a device, 1 it gave up.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '3,/^set /s/^# \{0,1\}//p' "$0" && exit ;; esac

readonly POLL=30             # seconds between two looks
readonly LOOKS=10            # so many looks in a row may find workers unreachable, or some ended and others not
readonly SHORT=300 LONG=2400 # seconds that a gcloud call may take, and one that installs or waits for a save
readonly SAVING=1800         # seconds that a stopped worker has to save

die() {
    echo "error: $*" >&2
    exit 2
}

give_up() {
    echo "error: $*" >&2
    exit 1
}

say() { echo "$(date -u +%FT%TZ) $*"; }

# quote WORDS...: as a POSIX shell reads them back, whatever they hold.
quote() {
    local word separator="" escaped="'\\''"
    for word in "$@"; do
        case "$word" in
        '' | *[!A-Za-z0-9_./:=@%,+-]*) word="'${word//\'/$escaped}'" ;;
        esac
        printf '%s%s' "$separator" "$word"
        separator=" "
    done
    printf '\n'
}

# --- on a worker: `on-worker WHAT`, called through ssh ----------------------------------------------------------------

# Everything lies in ~/albert_jax: code/ of the commit, venv/, and job/ with the log, the process and how it ended.
on_worker() {
    local what="$1"
    shift
    cd "$HOME/albert_jax"
    mkdir -p job
    case "$what" in
    install) worker_install ;;
    start) worker_start "$@" ;;
    state) worker_state ;;
    stop) worker_stop ;;
    log) tail "$@" job/log ;;
    *) die "on-worker $what is unknown; it is install, start, state, stop or log." ;;
    esac
}

# The images' own Python is older than JAX needs, and may refuse pip: uv brings another.
worker_install() {
    local want
    want="$(cksum <code/pyproject.toml)"
    [ "$(cat venv/.installed 2>/dev/null || true)" != "$want" ] || return 0
    python3 -m pip install --quiet --disable-pip-version-check --upgrade --target uv uv
    uv/bin/uv venv --quiet --clear --python 3.12 venv
    uv/bin/uv pip install --quiet --python venv/bin/python --editable "./code[tpu,gcs]"
    echo "$want" >venv/.installed
}

# The process that job/pid names, if it is still that one: after a reboot the number may be another's.
worker_process() {
    local pid
    pid="$(cat job/pid 2>/dev/null)" || return 1
    [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(pwd -P)/code" ] && echo "$pid"
}

worker_start() {
    local pid
    if pid="$(worker_process)"; then # left over from a run that has lost a peer: it can only wait
        kill -KILL "$pid" 2>/dev/null || true
        timeout 60 tail --pid="$pid" -s 0.2 -f /dev/null
    fi
    rm -f job/status job/stopped
    printf '\n=== %s %s: train.py %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "$(quote "$@")" >>job/log
    cd code
    trap '' HUP # inherited, so that it stays when the connection ends, from its first moment on
    setsid ../venv/bin/python scripts/launch.py --status=../job/status -- train.py "$@" \
        </dev/null >>../job/log 2>&1 &
    echo "$!" >../job/pid
}

# A line for this script on the operator's machine: running, exited STATUS, stopped STATUS, none; lost left no status.
worker_state() {
    local state=none
    if worker_process >/dev/null; then
        state=running
    elif [ -f job/status ]; then
        state="$([ -f job/stopped ] && echo stopped || echo exited) $(cat job/status)"
    elif [ -f job/pid ]; then
        state="exited lost"
    fi
    echo "albert_jax $(hostname) $state"
}

worker_stop() {
    local pid
    touch job/stopped
    if pid="$(worker_process)"; then
        kill -TERM "$pid" 2>/dev/null || true
        timeout "$SAVING" tail --pid="$pid" -s 0.2 -f /dev/null ||
            die "train.py on $(hostname) has not ended $SAVING s after SIGTERM; read its log, then delete the slice."
    fi
    worker_state
}

# --- commands on this machine -----------------------------------------------------------------------------------------

# run SECONDS COMMAND...: prints the command and, unless this is a dry run, runs it under a time limit.
run() {
    local limit="$1"
    shift
    if [ -n "$dry" ]; then
        quote "$@"
        return
    fi
    echo "+ $(quote "$@")" >&2
    timeout --kill-after=30 "$limit" "$@"
}

# attempt SECONDS COMMAND...: up to five times, with growing pauses.
attempt() {
    local pause=15 left
    for left in 4 3 2 1 0; do
        if run "$@"; then
            return 0
        fi
        [ "$left" != 0 ] || break
        say "that failed; again in $pause s, at most $left times"
        sleep "$pause"
        pause=$((pause * 2))
    done
    return 1
}

# These put a command into `command`.
describe() { # KIND FIELD
    command=(gcloud compute tpus "$1" describe "$name" "${where[@]}" --format="value($2)")
}

# gcloud cuts the command line at spaces and ssh joins it again: the worker's shell gets it unchanged.
remote() { # WORKER COMMAND-LINE
    command=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --quiet --worker="$1"
        ${connect[@]+"${connect[@]}"} --command="$2")
}

job_line() { # WHAT ARGUMENTS...: the command line for a worker
    echo "bash albert_jax/code/scripts/tpu_pod.sh on-worker $(quote "$@")"
}

ask_for_state() {
    remote all "if test -e albert_jax/code; then $(job_line state); else echo albert_jax new none; fi"
}

list_checkpoints() {
    command=(gcloud storage ls "${workdir%/}/checkpoints/")
}

# --- what Python knows ------------------------------------------------------------------------------------------------

# googles_name SLICE: as gcloud takes it.
googles_name() {
    "$python" - "$1" <<'END'
import sys

from albert_jax.errors import UserError
from albert_jax.training.chips import accelerator_type

try:
    print(accelerator_type(sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
END
}

# check_flags FLAGS...: finds a misspelt field or file now and not on the slice.
check_flags() {
    local argument look=fields
    for argument in "$@"; do
        case "$argument" in --config.data.path=gs://*) look=config ;; esac
    done
    "$python" train.py --check="$look" "$@" >&2
}

# --- the slice --------------------------------------------------------------------------------------------------------

# described KIND FIELD: the value, ABSENT, or UNKNOWN where gcloud cannot tell.
described() {
    local value
    describe "$@"
    if value="$(timeout --kill-after=30 "$SHORT" "${command[@]}" 2>"$scratch/errors")"; then
        echo "${value:-UNKNOWN}"
    elif grep -qi 'not_found\|not found' "$scratch/errors"; then
        echo ABSENT
    else
        cat "$scratch/errors" >&2
        echo UNKNOWN
    fi
}

# READY, WAITING for it to come, GONE (preempted, or never to come), ABSENT, DELETING, UNKNOWN.
slice_state() {
    local state
    state="$(described queued-resources state.state)"
    case "$state" in
    ACTIVE) ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) state=WAITING ;;
    SUSPENDING | SUSPENDED | FAILED) state=GONE ;;
    ABSENT | DELETING) ;;
    *) state=UNKNOWN ;;
    esac
    if [ "$state" = ACTIVE ]; then # the node is preempted some time before the request that it answers says so
        case "$(described tpu-vm state)" in
        READY) state=READY ;;
        CREATING | STARTING | RESTARTING | REPAIRING) state=WAITING ;;
        UNKNOWN) state=UNKNOWN ;;
        *) state=GONE ;;
        esac
    fi
    echo "$state"
}

create_slice() {
    attempt "$SHORT" gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" --quiet \
        --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+--spot} \
        ${account:+--service-account="$account"} --scopes=https://www.googleapis.com/auth/cloud-platform \
        ${create[@]+"${create[@]}"} ||
        [ "$(slice_state)" != ABSENT ] # where only the answer was lost, it has been created all the same
}

wait_for_slice() {
    local looks state
    for ((looks = patience * 3600 / POLL; looks > 0; looks--)); do
        state="$(slice_state)"
        case "$state" in
        READY) return 0 ;;
        WAITING | UNKNOWN) sleep "$POLL" ;;
        *) give_up "the slice $name is not coming ($state); delete it and create it again, or choose another --zone." ;;
        esac
    done
    give_up "the slice $name has not come within $patience hours; wait for longer with --patience, or delete it."
}

delete_slice() {
    local looks
    attempt "$SHORT" gcloud compute tpus queued-resources delete "$name" "${where[@]}" --quiet --force || true
    [ -z "$dry" ] || return 0
    for ((looks = 3 * LOOKS; looks > 0; looks--)); do
        [ "$(slice_state)" != ABSENT ] || return 0
        sleep "$POLL"
    done
    return 1
}

# --- the job ----------------------------------------------------------------------------------------------------------

install_code() {
    local commit archive line
    commit="$(git rev-parse HEAD)"
    [ -z "$(git status --porcelain)" ] || say "note: only what is committed is brought, ${commit:0:10}." >&2
    if [ -n "$repository" ]; then
        line="rm -rf albert_jax/new && git clone --quiet $(quote "$repository") albert_jax/new"
        line="$line && git -C albert_jax/new checkout --quiet $commit"
    else
        archive="${TMPDIR:-/tmp}/albert_jax-$commit.tar.gz"
        run "$SHORT" git archive --format=tar.gz --output="$archive" "$commit" || return 1
        attempt "$LONG" gcloud compute tpus tpu-vm scp "$archive" "$name:albert_jax.tar.gz" "${where[@]}" --quiet \
            --worker=all ${connect[@]+"${connect[@]}"} || return 1
        line="rm -rf albert_jax/new && mkdir -p albert_jax/new && tar -xzf albert_jax.tar.gz -C albert_jax/new"
    fi
    line="$line && rm -rf albert_jax/code && mv albert_jax/new albert_jax/code && $(job_line install)"
    remote all "$line"
    attempt "$LONG" "${command[@]}"
}

launch_job() {
    local variables=""
    [ "${#environment[@]}" = 0 ] || variables="env $(quote "${environment[@]}") "
    remote all "$variables$(job_line start "${rest[@]}")"
    attempt "$SHORT" "${command[@]}"
}

# What all workers say, in one word: running; partly (some have ended); finished; refused; stopped; none; unreachable;
# otherwise `failed` and how each of them ended.
job_state() {
    local said mark what status running=0 none=0 stopped="" ended=""
    ask_for_state
    if ! said="$(timeout --kill-after=30 "$SHORT" "${command[@]}" 2>"$scratch/errors")"; then
        tail -n 3 "$scratch/errors" >&2
        echo unreachable
        return
    fi
    while read -r mark _ what status; do
        [ "$mark" = albert_jax ] || continue
        case "$what" in
        running) running=$((running + 1)) ;;
        none) none=$((none + 1)) ;;
        stopped) stopped=1 ended="$ended $status" ;;
        *) ended="$ended $status" ;;
        esac
    done <<<"$said"
    case "$running,$none,$ended " in
    0,0," ") echo unreachable ;;
    0,0,*" 2 "* | 0,0,*" 71 "*) echo refused ;;
    0,0,*[!\ 0]*) [ -n "$stopped" ] && echo stopped || echo "failed with$ended" ;;
    0,0,*) echo finished ;;
    0,*) echo none ;;
    *,0," ") echo running ;;
    *) echo partly ;;
    esac
}

# The newest checkpoint's step; 0 where there is none or nobody can tell.
newest_step() {
    local listed
    list_checkpoints
    listed="$(timeout --kill-after=30 "$SHORT" "${command[@]}" 2>/dev/null)" || true
    sed -n 's|.*/\([0-9][0-9]*\)/$|\1|p' <<<"$listed" | sort -n | tail -n 1 | grep . || echo 0
}

# --- watch ------------------------------------------------------------------------------------------------------------

# spend WHY: one of the starts that may be in vain; they are counted anew when there is a newer checkpoint.
spend() {
    local newest pause
    newest="$(newest_step)"
    if [ "$newest" -gt "$saved" ]; then
        saved="$newest" spent=0
    fi
    [ "$spent" -lt "$restarts" ] ||
        give_up "$name: $1; $restarts starts have not led past step $saved. Read the logs, then watch again."
    spent=$((spent + 1))
    say "$1; start $spent of at most $restarts without a checkpoint after step $saved"
    pause=$((POLL * (spent - 1) * (spent - 1))) # what is not mended by itself is not tried too often
    [ "$pause" = 0 ] || sleep "$((pause < 900 ? pause : 900))"
}

# Where it fails, the next look finds the slice gone, and spends another start.
replace_slice() {
    strange=0 waited=0
    if ! { delete_slice && create_slice; }; then
        say "$name cannot be replaced; gcloud's message is above"
    fi
}

watch_job() {
    local state
    state="$(job_state)"
    [ "$state" = "$last" ] || say "$name: $state"
    last="$state"
    case "$state" in
    running) strange=0 ;;
    finished) exit 0 ;;
    stopped) exit 75 ;;
    refused)
        remote all "$(job_line log -n 20)"
        run "$SHORT" "${command[@]}" || true
        die "train.py refuses its input, or a device's memory is too small; the end of its log is above."
        ;;
    none)
        if ! { install_code && launch_job; }; then
            spend "the job cannot be started"
        fi
        ;;
    failed*)
        spend "the job $state"
        launch_job || true
        ;;
    *) # partly, unreachable: it may mend itself, or turn out to be a preemption
        strange=$((strange + 1))
        [ "$strange" -gt "$LOOKS" ] || return 0
        spend "workers: $state for $((LOOKS * POLL)) s"
        strange=0
        if [ "$state" = partly ]; then
            launch_job || true
        else
            replace_slice
        fi
        ;;
    esac
}

watch() {
    local state last="" strange=0 waited=0 spent=0 saved
    saved="$(newest_step)"
    [ "$(slice_state)" != ABSENT ] || create_slice || say "$name cannot be created; gcloud's message is above"
    while :; do
        state="$(slice_state)"
        case "$state" in
        READY)
            waited=0
            watch_job
            ;;
        GONE | ABSENT)
            spend "the slice $name is gone"
            replace_slice
            ;;
        *)
            [ "$state" = "$last" ] || say "$name: $state"
            last="$state"
            waited=$((waited + 1))
            [ "$((waited * POLL))" -le "$((patience * 3600))" ] ||
                give_up "the slice $name has been $state for $patience hours; wait for longer with --patience."
            ;;
        esac
        sleep "$POLL"
    done
}

show_looks() {
    describe queued-resources state.state
    run 0 "${command[@]}"
    describe tpu-vm state
    run 0 "${command[@]}"
}

show_watch() {
    echo "# Every $POLL s: the slice, and where it is ready, the job."
    show_looks
    ask_for_state
    run 0 "${command[@]}"
    echo "# Where there is no slice:"
    create_slice
    echo "# Where nothing runs on it; the last command alone where the job has failed:"
    install_code
    launch_job
    echo "# Before a start that follows a failure: has the last one led to a checkpoint?"
    list_checkpoints
    run 0 "${command[@]}"
    echo "# Where the slice was preempted or its workers stay out of reach, before it is created again:"
    delete_slice
}

# --- the command line -------------------------------------------------------------------------------------------------

if [ "${1:-}" = on-worker ]; then
    shift
    on_worker "$@"
    exit
fi

cd "$(dirname "$0")/.."
action="${1:-}"
name="" zone="" project="" accelerator="" runtime="" spot="" account="" repository="" dry="" workdir=""
python="${PYTHON:-.venv/bin/python}"
patience=24 restarts=10 worker=0
create=() connect=() environment=() rest=()
case "$action" in
watch | create | install | launch | status | logs | stop | delete) shift ;;
*) die "'$action' is none of watch, create, install, launch, status, logs, stop and delete; see the head of $0." ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --spot) spot=1 ;;
    --service-account=*) account="${1#*=}" ;;
    --create-flag=*) create+=("${1#*=}") ;;
    --connect-flag=*) connect+=("${1#*=}") ;;
    --env=*=*) environment+=("${1#*=}") ;;
    --repository=*) repository="${1#*=}" ;;
    --patience=*) patience="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --worker=*) worker="${1#*=}" ;;
    --dry-run) dry=1 ;;
    --)
        shift
        rest=("$@")
        break
        ;;
    *) die "'$1' is no option of $action; options are given as --name=VALUE, and train.py's flags follow --." ;;
    esac
    shift
done
for number in "$patience" "$restarts"; do
    [[ "$number" =~ ^[0-9]+$ ]] || die "--patience and --restarts take whole numbers, not '$number'."
done
[ -n "$name" ] || die "the slice needs a name; give --name=NAME."
[ -n "$zone" ] || die "gcloud needs the slice's zone; give --zone=ZONE, such as us-east5-b."
where=(--zone="$zone" ${project:+--project="$project"})

for argument in ${rest[@]+"${rest[@]}"}; do
    case "$argument" in --workdir=*) workdir="${argument#*=}" ;; esac
done
case "$action" in watch | create | launch)
    [ -x "$python" ] || die "there is no $python; run pip install -e . in a .venv, or name one by PYTHON=..."
    ;;
esac
case "$action" in watch | launch)
    [ "${#rest[@]}" -gt 0 ] || die "train.py needs flags; give them behind --, as in: -- --config=configs/base.py ..."
    [[ "$workdir" == gs://?* ]] ||
        die "--workdir='$workdir' would be lost with the slice; give train.py a --workdir=gs://BUCKET/FOLDER."
    ;;
esac
case "$action" in watch | create)
    [ -n "$accelerator" ] || die "what to create? Give --accelerator=TYPE, such as v5e-16 or v6e-16."
    accelerator="$(googles_name "$accelerator")" || exit 2
    case "$runtime,$accelerator" in # https://cloud.google.com/tpu/docs/runtimes
    ?*,*) ;;
    ,v[234]-*) runtime=tpu-ubuntu2204-base ;;
    ,v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    ,v5p-*) runtime=v2-alpha-tpuv5 ;;
    ,v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "which software a $accelerator needs is not known here; give --runtime=VERSION." ;;
    esac
    ;;
esac
case "$action" in watch | launch) check_flags "${rest[@]}" ;; esac
if [ -z "$dry" ]; then
    for program in gcloud git timeout; do
        command -v "$program" >/dev/null || die "there is no $program on the PATH; install it (timeout: coreutils)."
    done
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
fi

case "$action" in
watch) if [ -n "$dry" ]; then show_watch; else watch; fi ;;
create)
    create_slice || give_up "the slice $name cannot be created; gcloud's message is above."
    if [ -n "$dry" ]; then show_looks; else wait_for_slice; fi
    ;;
install) install_code || give_up "the workers of $name cannot be prepared; gcloud's message is above." ;;
launch)
    if [ -n "$dry" ]; then
        ask_for_state
        run 0 "${command[@]}"
    else
        state="$(job_state)"
        case "$state" in running | partly) die "the job on $name is $state; stop it before another is launched." ;; esac
    fi
    launch_job || give_up "the job cannot be started on $name; gcloud's message is above."
    ;;
status)
    if [ -n "$dry" ]; then show_looks; else say "slice: $(slice_state)"; fi
    ask_for_state
    run "$SHORT" "${command[@]}" || give_up "the workers of $name cannot be asked; gcloud's message is above."
    ;;
logs)
    [ "${#rest[@]}" -gt 0 ] || rest=(-n 100)
    remote "$worker" "$(job_line log "${rest[@]}")"
    run 0 "${command[@]}" # tail -f may take as long as it likes
    ;;
stop)
    remote all "$(job_line stop)"
    attempt "$LONG" "${command[@]}" || give_up "not all workers of $name have stopped; see status and logs."
    ;;
delete) delete_slice || give_up "the slice $name is still there; gcloud's message is above." ;;
esac
