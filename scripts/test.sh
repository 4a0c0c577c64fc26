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
cd "$(dirname "$0")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

# make_environment DIRECTORY: a virtual environment with a working pip.
make_environment() {
    if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "+ $python -m venv $1"
        "$python" -m venv "$1"
    fi
    local made_with
    made_with="$("$1/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    [ "$made_with" = "$version" ] || die "$1 was made with Python $made_with and $python is $version; delete $1 and run again."
}

# install_once DIRECTORY NAME PIP_ARGUMENTS...: pip install, unless it was done under NAME for this pyproject.toml.
install_once() {
    local directory="$1" stamp="$1/.installed-$2" want
    shift 2
    want="$(cksum <pyproject.toml) $*"
    [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ] && return 0
    echo "+ $directory/bin/python -m pip install $*   (the first time this takes minutes)"
    "$directory/bin/python" -m pip install -qq --disable-pip-version-check "$@" || return 1
    echo "$want" >"$stamp"
}

python="${PYTHON:-python3}"
command -v "$python" >/dev/null || die "there is no $python on the PATH; install Python 3.11 or newer, or name one by PYTHON=..."
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is Python $version and 3.11 or newer is needed; name another by PYTHON=..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments; install its venv package (on Debian: apt install python$version-venv)."

environment=".venv${PYTHON:+-$version}"
make_environment "$environment"
install_once "$environment" test -e '.[test]' || die "the installation into $environment failed; pip's message is above."

# torch, for the comparisons with transformers' models. Python 3.11 is where a CPU build was run; for other versions pip
# would fetch several GB of CUDA libraries, so there torch is used only if it is in the environment already.
if [ "$version" = 3.11 ]; then
    install_once "$environment" parity -e '.[parity]' || echo "note: torch could not be installed."
fi
"$environment/bin/python" -c 'import torch' 2>/dev/null ||
    echo "note: no torch in $environment (Python $version): the tests that compare with transformers' models are skipped."

# transformers 4 and 5 cannot share an environment; the tokenizer is compared with both.
if [ -z "${ALBERT_JAX_TRANSFORMERS4_PYTHON:-}" ]; then
    make_environment "$environment-transformers4"
    if install_once "$environment-transformers4" test transformers==4.57.6 sentencepiece protobuf; then
        export ALBERT_JAX_TRANSFORMERS4_PYTHON="$PWD/$environment-transformers4/bin/python"
    else
        echo "note: transformers 4.57.6 could not be installed: the tests that compare with it are skipped."
    fi
fi

# All checks run, whatever the ones before found.
failed=""
check() {
    echo "+ $environment/bin/python -m $*"
    "$environment/bin/python" -m "$@" || failed="$failed${failed:+, }$1"
}
check ruff check .
check ruff format --check .
check mypy
check pytest "$@"
[ -z "$failed" ] || { echo "not passed: $failed" >&2; exit 1; }
echo "all checks passed"
