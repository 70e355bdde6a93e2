#!/usr/bin/env bash
# The tests on Kubernetes, from whatever there is on this machine to nothing left behind: what CI runs. Exit code 77: skipped,
# for no container engine runs here and none can be started.
set -euo pipefail
engine=$(dirname "$0")/node-image/engine.sh
started=
docker info >/dev/null 2>&1 || started=yes
"$engine" start || {
  "$engine" stop
  echo "Skipped: the tests on Kubernetes. No container engine runs here, and none can be started." >&2
  exit 77
}
. "$(dirname "$0")/common.sh"
export PGHC_KIND=${PGHC_KIND:-$name-test}
end() {
  "$here/down.sh" --name "$PGHC_KIND" || true
  [ ! "$started" ] || "$engine" stop
}
trap end EXIT
"$here/up.sh" --name "$PGHC_KIND"
cd "$root" && .venv/bin/python -m pytest -m kind "$@"
