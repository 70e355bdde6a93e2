#!/usr/bin/env bash
# The tests on Kubernetes, from whatever there is on this machine to nothing left behind: what CI runs.
. "$(dirname "$0")/common.sh"
export PGHC_KIND=${PGHC_KIND:-$name-test}
started=
docker info >/dev/null 2>&1 || started=yes
end() {
  "$here/down.sh" --name "$PGHC_KIND" || true
  [ ! "$started" ] || "$here/node-image/engine.sh" stop
}
trap end EXIT
"$here/node-image/engine.sh" start
"$here/up.sh" --name "$PGHC_KIND"
cd "$root" && .venv/bin/python -m pytest -m kind "$@"
