#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a bare machine (Python >= 3.11 with pip) to all tests: makes the environments, installs, lints, checks types, tests.
#
#   bash scripts/test.sh                      # python3, in .venv
#   PYTHON=python3.13 bash scripts/test.sh    # that interpreter, in .venv-3.13
#   bash scripts/test.sh -k masking           # further arguments go to pytest
#
# A second run installs only if pyproject.toml has changed since.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '3,/^set /s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

. scripts/environment.sh
install_once "$environment" test -e '.[test]' || die "the installation into $environment failed; pip's message is above."

# torch, for the comparisons with transformers' models. Python 3.11 is where a CPU build was run; for other versions pip
# would fetch several GB of CUDA libraries, so there torch is used only if it is in the environment already.
if [ "$version" = 3.11 ]; then
    install_once "$environment" torch -e '.[torch]' 'torch==2.13.0' || echo "note: torch could not be installed."
fi
"$environment/bin/python" -c 'import torch' 2>/dev/null ||
    echo "note: no torch in $environment (Python $version): the tests that compare with transformers' models are skipped."

# The tests' stand-in for an accelerator. JAX does not look at this package unless the stand-in is on PYTHONPATH.
if [ "$version" != 3.11 ]; then
    install_once "$environment" standin --no-deps lammps-jax-pjrt-cpu==0.11.2 ||
        echo "note: lammps-jax-pjrt-cpu could not be installed: nothing is tried on a device that is no CPU."
fi

# transformers 4 and 5 cannot share an environment. Tokenizers, Flax classes and files are compared with 4's, and Google's
# checkpoints are written by TensorFlow, beside it. Each part is a step of its own: what cannot be had is named.
if [ -z "${ALBERT_JAX_TRANSFORMERS4_PYTHON:-}" ]; then
    peers="$environment-transformers4"
    make_environment "$peers"
    peer() {
        install_once "$peers" "$1" "${@:2}" || echo "note: $1 could not be installed: tests that compare with it are skipped."
    }
    peer transformers transformers==4.57.6 sentencepiece protobuf
    peer flax 'jax>=0.10.2,<0.13' 'flax>=0.12.8,<0.13' 'optax>=0.2.8,<0.3'
    peer tensorflow tensorflow-cpu==2.21.0 tf-keras==2.21.0
    [ "$version" != 3.11 ] || peer torch torch==2.13.0
    export ALBERT_JAX_TRANSFORMERS4_PYTHON="$PWD/$peers/bin/python"
fi

# Apache Beam keeps protobuf at 6, which transformers 5 cannot read a spiece.model with: an environment of its own.
if [ -z "${ALBERT_JAX_BEAM_PYTHON:-}" ]; then
    make_environment "$environment-beam"
    install_once "$environment-beam" beam -e '.[beam]' ||
        echo "note: Apache Beam could not be installed: builds by Beam are not tried."
    export ALBERT_JAX_BEAM_PYTHON="$PWD/$environment-beam/bin/python"
fi

# JavaScript's readers of tokenizer.json; what they compute with is downloaded by scripts of theirs, and not needed.
if [ -z "${ALBERT_JAX_NODE_PACKAGES:-}" ] && command -v npm >/dev/null; then
    packages="@huggingface/tokenizers@0.2.0 @huggingface/transformers@3.8.1"
    if [ "$(cat "$environment-node/.installed" 2>/dev/null || true)" != "$packages" ]; then
        mkdir -p "$environment-node"
        npm install --prefix "$environment-node" --ignore-scripts --no-audit --no-fund --loglevel=error $packages &&
            echo "$packages" >"$environment-node/.installed" ||
            echo "note: $packages could not be installed: JavaScript's tokenizers are not compared with ours."
    fi
    export ALBERT_JAX_NODE_PACKAGES="$PWD/$environment-node"
fi

# libtpu compiles for TPUs that are not there. It stays out of the environment: JAX would look for a TPU at every start.
libtpu="$("$environment/bin/python" -c '
import importlib.metadata
print(next(r.split(";")[0].strip() for r in importlib.metadata.requires("jax") if r.startswith("libtpu")))')"
install_once "$environment" libtpu --upgrade --target "$environment-libtpu" "$libtpu" ||
    echo "note: $libtpu could not be installed: nothing is compiled for TPUs."
export PYTHONPATH="$PWD/$environment-libtpu${PYTHONPATH:+:$PYTHONPATH}"

# All checks run, whatever the ones before found.
failed=""
check() {
    echo "+ $environment/bin/python -m $*"
    "$environment/bin/python" -m "$@" || failed="$failed${failed:+, }$1"
}
check ruff check .
check ruff format --check .
check mypy
# Files in parallel: a file's fixtures are made once. Tests that start programs leave cores idle meanwhile.
check pytest -n auto --maxprocesses 4 --dist loadfile "$@"
[ -z "$failed" ] || { echo "not passed: $failed" >&2; exit 1; }
echo "all checks passed"
