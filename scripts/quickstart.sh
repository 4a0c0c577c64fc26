#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a bare machine (Python >= 3.11 with pip) to a small ALBERT that is trained, interrupted, resumed, exported and tried.
#
#   bash scripts/quickstart.sh            # works in runs/quickstart
#   bash scripts/quickstart.sh DIRECTORY  # works there
#
# Nothing is downloaded but packages: the text is the documentation that Python and these packages carry. Each command is
# echoed as it can be typed by hand; the environment's python is .venv/bin/python.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '3,/^set /s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."
. scripts/environment.sh
install_once "$environment" quickstart -e '.[quickstart]' || die "the installation into $environment failed; pip's message is above."

# On Linux, large pages for large arrays: less time in the kernel, the same results.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

out="${1:-runs/quickstart}"
py="$environment/bin/python"
began=$SECONDS

run() {
    printf '\n$'
    printf ' %q' "$@"
    printf '\n'
    "$@"
}

# What an earlier quick start left is removed; anything else is left alone.
[ -e "$out/.quickstart" ] || [ -z "$(ls -A "$out" 2>/dev/null)" ] || die "$out holds other files; name a new directory."
rm -rf "$out"
mkdir -p "$out"
touch "$out/.quickstart"

# 1. A vocabulary, by ALBERT's recipe, from the embedded corpus.
run "$py" -m pretrain_data vocab --source python-docs --size 8000 --out "$out/vocab"

# 2. Text -> sentences -> tokens -> a TFDS data set with a training and a validation split.
run "$py" -m pretrain_data build --source python-docs --vocab "$out/vocab/spiece.model" --validation-fraction 0.08 --out "$out/data"

# 3. Training. 4. Half-way it is interrupted, as a preempted machine would be, and the same command goes on.
train=("$py" train.py --config=configs/quickstart.py --workdir="$out/train" --config.data.path="$out/data")
training=$SECONDS
printf '\n$ %s   # to be interrupted half-way\n' "${train[*]}"
"${train[@]}" &
trainer=$!
trap 'kill "$trainer" 2>/dev/null || true' EXIT
half="$("$py" -c 'from configs.quickstart import get_config; print(get_config().steps // 2)')"
until grep -qs "\"step\": $half," "$out/train/metrics.jsonl"; do
    kill -0 "$trainer" 2>/dev/null || break
    sleep 1
done
printf '\n$ kill -TERM %s\n' "$trainer"
kill -TERM "$trainer" 2>/dev/null || true
status=0
wait "$trainer" || status=$?
trap - EXIT
echo "train.py left with status $status"
[ "$status" = 75 ] || die "the interrupted training should have left with status 75, saved and to be continued."
run "${train[@]}"
training=$((SECONDS - training))

# 5. A directory that transformers loads.
run "$py" scripts/export.py --workdir "$out/train" --out "$out/export"

# 6. It answers, through our own loader and, where transformers and torch are installed, through transformers.
printf '\n'
run "$py" scripts/plot_curves.py "$out/train" --out "$out/curves.png"
run "$py" scripts/quickstart_report.py --workdir "$out/train" --seconds "$training"
run "$py" scripts/fill_mask.py "$out/export" "Return the number of [MASK] in the array."
run "$py" scripts/fill_mask.py "$out/export" "If the file does not [MASK], an error is raised."
printf '\nDone in %s s after the installation. The model is in %s; the curves are in %s.\n' "$((SECONDS - began))" "$out/export" "$out/curves.png"
