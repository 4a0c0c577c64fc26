#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A training run on GPUs that Slurm gives out: submits it, and puts it back into the queue until it has finished.
#
#   bash scripts/slurm.sh --nodes=2 --gpus-per-node=8 --time=24:00:00 --partition=gpu \
#       -- --config=configs/large.py --workdir=/shared/large --config.data.path=/shared/data
#   bash scripts/slurm.sh stop JOB      saves, and leaves the queue
#
#   --restarts=N   gives up after so many starts in a row without a newer checkpoint, 10 unless given
#   --dry-run      checks train.py's flags and data, prints the command and runs nothing
#   --data-elsewhere   the data lie where only the nodes see them: they are not looked at before the job is submitted
#
# Any other option is sbatch's; --gpus-per-node or --gres=gpu:N is needed. The checkout and the workdir must lie where
# all nodes see them; PYTHON=... names another Python than .venv/bin/python. Output: slurm-JOB.out in the checkout.
#
# There is one process for each GPU, which is what jax.distributed expects of Slurm. Two minutes before the time is up
# (another time: --signal=TERM@SECONDS) Slurm sends SIGTERM to train.py: it saves and leaves with status 75, and the
# job is queued again, as after a lost process. The job ends with 0 when the run has finished, 2 at a bad input, 71 where
# a device's memory is too small, 75 when it was stopped, 1 when it gives up.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '3,/^set /s/^# \{0,1\}//p' "$0" && exit ;; esac

die() {
    echo "error: $*" >&2
    exit 2
}

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

run() {
    if [ -n "$dry" ]; then
        quote "$@"
    else
        echo "+ $(quote "$@")" >&2
        "$@"
    fi
}

# --- in the job -------------------------------------------------------------------------------------------------------

# The newest checkpoint's step, 0 where there is none; the workdir may be on gs://.
newest_step() {
    "$python" - "$1" <<'END'
import sys
from etils import epath

folder = epath.Path(sys.argv[1]) / "checkpoints"
steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
print(max(steps, default=0))
END
}

# batch RESTARTS -- FLAGS...: what sbatch runs, on the first node.
batch() {
    local restarts="$1" job="$SLURM_JOB_ID" state="slurm-$SLURM_JOB_ID" workdir="" argument newest saved=0 spent=0
    local tasks=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))
    shift 2
    for argument in "$@"; do
        case "$argument" in --workdir=*) workdir="${argument#*=}" ;; esac
    done
    mkdir -p "$state"
    rm -f "$state"/status.*
    trap : TERM # a cancelled job's shell is signalled too; srun's tasks are what has to save
    # srun no longer takes this from the job by itself.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
    # Every task sees all GPUs of its node and JAX takes the one of its SLURM_LOCALID: Slurm must not bind them. A task
    # that ends must not kill the others, who may be saving; but if they hang, they have five minutes.
    run srun --ntasks="$tasks" --ntasks-per-node="$SLURM_NTASKS_PER_NODE" --gpu-bind=none --kill-on-bad-exit=0 \
        --wait=300 bash scripts/slurm.sh task "$state" -- "$@" || true
    judge "$state" "$tasks" # leaves when the run needs no further start
    [ ! -s "$state/starts" ] || read -r spent saved <"$state/starts"
    newest="$(newest_step "$workdir" || echo 0)"
    if [ "$newest" -gt "$saved" ]; then
        saved="$newest" spent=0
    fi
    if [ "$spent" -ge "$restarts" ]; then
        echo "error: $restarts starts have not led past step $saved; read slurm-$job.out, then submit again." >&2
        exit 1
    fi
    echo "$((spent + 1)) $saved" >"$state/starts"
    queue_again "$job"
}

# judge STATE TASKS: leaves with 2 or 71 where a task was refused so, with 0 where all have finished.
judge() {
    local i status ended=""
    for ((i = 0; i < $2; i++)); do
        status="$(cat "$1/status.$i" 2>/dev/null || echo lost)"
        ended="$ended $status"
    done
    echo "tasks ended with$ended"
    case "$ended " in
    *" 2 "*) exit 2 ;;
    *" 71 "*) exit 71 ;;
    *[!\ 0]*) ;;
    *) exit 0 ;;
    esac
}

queue_again() {
    local about left
    for left in 4 3 2 1 0; do
        about="$(scontrol show job --oneliner "$1" || true)"
        case " $about " in
        *" Requeue=0 "*) # what `stop` sets
            echo "the job was stopped; the same command goes on with it."
            exit 75
            ;;
        *" JobState=RUNNING "*)
            run scontrol requeue "$1" && exit 75
            ;;
        *" JobState="*) # cancelled, or preempted, when Slurm itself puts it back
            echo "the job is not queued again: it is no longer running."
            exit 75
            ;;
        esac
        [ "$left" = 0 ] || sleep 30
    done
    echo "error: Slurm does not take job $1 back; submit the same command again." >&2
    exit 1
}

# task STATE -- FLAGS...: what srun runs, once for each GPU. srun's own status would tell only the highest of all.
task() {
    local state="$1"
    shift 2
    exec "$python" scripts/launch.py --status="$state/status.$SLURM_PROCID" -- train.py "$@"
}

# --- on the submitting machine ----------------------------------------------------------------------------------------

stop() {
    [[ $# -eq 1 && "$1" =~ ^[0-9]+$ ]] ||
        die "stop takes the number of a job and nothing else, as in: bash scripts/slurm.sh stop 4711."
    run scontrol update JobId="$1" Requeue=0
    run scancel --state=RUNNING --signal=TERM "$1"
    run scancel --state=PENDING "$1"
}

submit() {
    local options=() restarts=10 gpus="" wait_for="" option look=config
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        option="$1"
        shift
        case "$wait_for$option" in # sbatch takes --name=VALUE and --name VALUE
        --restarts=*) restarts="${option#*=}" && continue ;;
        --dry-run) dry=1 && continue ;;
        --data-elsewhere) look=fields && continue ;;
        --gpus-per-node=* | --gres=gpu:* | "gpus "*) gpus="${option%%,*}" gpus="${gpus##*[=:]}" wait_for="" ;;
        --gpus-per-node) wait_for="gpus " ;;
        esac
        options+=("$option")
    done
    [ $# -gt 1 ] || die "train.py needs flags; give them behind --, as in: -- --config=configs/base.py --workdir=..."
    shift
    [[ "$restarts" =~ ^[0-9]+$ ]] || die "--restarts takes a whole number, not '$restarts'."
    [[ "$gpus" =~ ^[1-9][0-9]*$ ]] ||
        die "how many GPUs on each node ('$gpus')? Give --gpus-per-node=N or --gres=gpu:N."
    [[ " $* " == *" --workdir="[!\ ]* ]] ||
        die "where does the run live? Give train.py a --workdir=DIRECTORY that all nodes see."
    [ -x "$python" ] || die "there is no $python; run pip install -e '.[cuda]' in a .venv, or name one by PYTHON=..."
    # A misspelt field or file is found now and not when the job's turn has come.
    "$python" train.py --check="$look" "$@" >&2
    run sbatch --job-name=albert_jax --requeue --open-mode=append --output=slurm-%j.out --signal=TERM@120 \
        --ntasks-per-node="$gpus" "${options[@]}" scripts/slurm.sh batch "$restarts" -- "$@"
}

dry=""
python="${PYTHON:-.venv/bin/python}"
case "${1:-}" in
batch) "$@" ;; # Slurm runs a copy of this file, in the directory of the submission
task) "$@" ;;
*)
    cd "$(dirname "$0")/.."
    if [ "${1:-}" = stop ]; then "$@"; else submit "$@"; fi
    ;;
esac
