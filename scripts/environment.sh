# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart.sh and test.sh from the repository's root: finds Python, makes the environment, installs once.
#
#   PYTHON=python3.13 ...   takes that interpreter, in .venv-3.13; without it, python3 in .venv
#
# Sets python, version (like 3.11) and environment.

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
