#!/bin/sh
# Usage: scripts/venv.sh run|all
#
# Makes .venv with the locked packages: `run` is what `make demo` needs, `all` adds the lab, the API and the tools of
# development. Needs python3 >= 3.11 and no more: where Debian's python3 comes without ensurepip and pip, pip is taken
# from the Debian package python3-pip-whl. Package indexes, mirrors and proxies are those of the user's own pip
# configuration. Done work is not done again; a half-made .venv is completed.
set -eu
cd "$(dirname "$0")/.."
group=${1:?run or all}
venv=$PWD/.venv

say() { printf '%s\n' "$*" >&2; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# A stamp holds the checksum of what was installed; everything includes what the demo needs
locked() { cat requirements/"$1".txt pyproject.toml | cksum; }
installed() { [ -f "$venv/.installed-$1" ] && [ "$(cat "$venv/.installed-$1")" = "$(locked "$1")" ]; }
if { installed "$group" || installed all; } && "$venv/bin/python" -c '' 2>/dev/null; then exit 0; fi

if ! { [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python"; }; then
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        say "PGHC needs Python 3.11 or later; ${PYTHON:-python3} is $( ("${PYTHON:-python3}" --version) 2>/dev/null || echo 'not installed')."
        say "Install a newer one (Debian 12 and Ubuntu 24.04 have it: apt install python3), or name it: make demo PYTHON=/path/to/python3.12"
        exit 2
    fi
    say "Making .venv with $("$python" --version)"
    "$python" -m venv --clear --without-pip "$venv"
fi

# pip: the interpreter's own copy, else that of the system, else Debian's wheel without installing anything
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$venv/bin/python" -m ensurepip --default-pip >/dev/null 2>&1; then
        wheel=$(ls /usr/share/python-wheels/pip-*.whl 2>/dev/null | tail -n 1)
        if [ -z "$wheel" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
            say "This Python has no pip: taking the one in the Debian package python3-pip-whl"
            scratch=$(mktemp -d)
            trap 'rm -rf "$scratch"' EXIT
            if (cd "$scratch" && apt-get download python3-pip-whl >/dev/null 2>&1 && dpkg -x ./*.deb .); then
                wheel=$(ls "$scratch"/usr/share/python-wheels/pip-*.whl 2>/dev/null | tail -n 1)
            fi
        fi
        if [ -z "$wheel" ]; then
            say "This Python can install no packages: it comes without pip and ensurepip."
            say "On Debian and Ubuntu: sudo apt-get update && sudo apt-get install python3-venv; then try again."
            exit 2
        fi
        # A wheel is a zip file that Python can run from, so pip installs pip
        "$venv/bin/python" "$wheel/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
    fi
fi

say "Installing the locked packages into .venv ($(grep -c == requirements/"$group".txt) of them; the first time takes a minute)"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
if ! pip install --quiet --require-hashes --requirement requirements/"$group".txt; then
    say "The packages could not be installed; the lines above say why. Behind a proxy or a mirror, tell pip of it: pip config set global.index-url ..."
    exit 2
fi
pip install --quiet --no-deps --no-build-isolation --no-index --editable .
locked "$group" >"$venv/.installed-$group"
