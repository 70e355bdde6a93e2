#!/bin/sh
# Resolves the newest versions that pyproject.toml allows and locks them, with the hashes of every file of a version,
# for Python 3.11 and later on Linux and macOS. Needs uv on PATH or in $UV. No index or download address is recorded.
set -eu
cd "$(dirname "$0")/.."
compile() {
    "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
        --no-emit-index-url --no-emit-find-links --custom-compile-command scripts/lock.sh "$@" \
        pyproject.toml requirements/build.in
}
compile --all-extras --output-file requirements/all.txt
compile --constraint requirements/all.txt --output-file requirements/run.txt
