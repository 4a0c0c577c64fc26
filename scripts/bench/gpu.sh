#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A short real training of base and xxlarge on one GPU, interrupted and resumed, beside transformers' torch, in under 9
# minutes.
#
#   bash scripts/bench/gpu.sh prepare FOLDER --python-version 3.12 --jax 0.11.2 --text 'corpus/*.txt' --vocab spiece.model
#   bash scripts/bench/gpu.sh run FOLDER               # on the machine with the GPU, with its own python and JAX
#   bash scripts/bench/gpu.sh run FOLDER --rehearse    # the same stages on a CPU, with tiny models
#
# The first, on a machine with this project's environment, fills FOLDER; the second needs neither network nor TFDS, only
# this repository and FOLDER. Paths are relative to the repository; PYTHON=... names another interpreter. What is measured,
# and how, stands in scripts/bench/gpu.py; the results go to $OUT where it is set, else to FOLDER/results.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '3,/^set /s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/../.."

case "${1:-}" in
prepare) exec "${PYTHON:-.venv/bin/python}" scripts/bench/gpu_folder.py "${@:2}" ;;
# The program ends by itself after 510 s at most; this is for the case that it does not.
run) exec timeout --signal=TERM --kill-after=5 530 "${PYTHON:-python3}" scripts/bench/gpu.py "${@:2}" ;;
*)
    echo "error: say 'prepare FOLDER ...' or 'run FOLDER ...', not '${1:-}'." >&2
    exit 2
    ;;
esac
