# What up.sh, down.sh and status.sh share. Sourced by them.
# shellcheck shell=bash disable=SC2034  # used where it is sourced
. "$(dirname "${BASH_SOURCE[0]}")/surroundings.sh"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${here%/*}
export PGHC_CACHE=${PGHC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pghc}
PATH=$PATH:$PGHC_CACHE/node-image/bin # kind and kubectl, where they were built together with the node image
kind_version=v0.33.0

user=$(id -un | tr '[:upper:]_.' '[:lower:]--' | tr -cd 'a-z0-9-')
name=${PGHC_KIND:-pghc-$user} # a name a user, and so containers, a network and files of their own
label=app.kubernetes.io/part-of=pghc

start=$SECONDS
step() { printf '%4d s  %s\n' $((SECONDS - start)) "$*"; }
fail() { # fail WHAT REMEDY...
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  %s\n' "${@:2}" >&2
  exit 2
}
{ [ "${BASH_VERSINFO[0]}" -ge 5 ] && command -v timeout >/dev/null; } || fail "bash 5 (this is $BASH_VERSION) and timeout are needed" \
  "macOS: brew install bash coreutils"

use_cluster() { # what every command below refers to
  [[ $name =~ ^[a-z0-9][a-z0-9-]{0,40}$ ]] || fail "the name $name must be of a-z, 0-9 and hyphens"
  export KIND_EXPERIMENTAL_DOCKER_NETWORK=$name
  work=$PGHC_CACHE/kind/$name
}
# No wait is without end. The user's own kubeconfig is neither read nor changed
bounded() { timeout --foreground "$@"; }
k() { bounded 180 kubectl --kubeconfig "$work/kubeconfig" --context "kind-$name" --request-timeout 60s "$@"; }
nodes() { bounded 20 docker ps --all --filter "label=io.x-k8s.kind.cluster=$name" --format '{{.Names}}' "$@"; }

# Interruptions. What takes long runs in a process group of its own: Ctrl-C reaches this script alone, at once, and it ends the rest
jobs=()
exec {errors}>&2 # a trap may find it redirected, for a command that it interrupts
background() { # background COMMAND...: its process is ${jobs[-1]}
  set -m; "$@" & jobs+=($!); set +m
}
run() { # run COMMAND...: wait for it
  local code=0
  background "$@"
  wait "${jobs[-1]}" || code=$?
  unset 'jobs[-1]'
  return $code
}
stop_jobs() {
  local job
  for job in "${jobs[@]}"; do kill -- "-$job" 2>/dev/null || true; done
}
trap 'exit 130' INT
trap 'exit 143' TERM HUP

is() { kill -0 "$1" 2>/dev/null && ps -o args= -p "$1" | grep -q -- "$2"; } # is PROCESS WHAT

own() { # one script at a time works on a cluster
  mkdir -p "$work"
  while ! (set -o noclobber; echo $$ > "$work/owner") 2>/dev/null; do
    local other; other=$(cat "$work/owner" 2>/dev/null) || continue
    if is "${other:-0}" 'up.sh\|down.sh'; then fail "process $other works on the cluster $name" "Wait for it, or end it: kill $other"; fi
    rm -f "$work/owner" # it has died
  done
}
is_owner() { [ "$(cat "$work/owner" 2>/dev/null)" = $$ ]; }

# While kind makes a cluster this file has its process: what is there of the cluster then is of no use to anybody else
making() { [ -e "$work/making" ]; }

remove_cluster() { # containers, volumes, network, files; whatever is there of them
  local all maker
  maker=$(cat "$work/making" 2>/dev/null) || maker=
  if [ "$maker" ] && is "$maker" 'kind create'; then kill -KILL -- "-$maker" 2>/dev/null || true; fi
  if command -v kind >/dev/null; then run timeout 180 kind delete cluster --name "$name" --kubeconfig "$work/kubeconfig" >/dev/null 2>&1 || true; fi
  mapfile -t all < <(nodes) # what kind did not know of, or all where kind is gone
  [ ${#all[@]} = 0 ] || run timeout 120 docker rm --force --volumes "${all[@]}" >/dev/null || fail "the containers ${all[*]} cannot be removed"
  bounded 20 docker network rm "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
}

need_docker() {
  command -v docker >/dev/null || fail "Docker is not installed" \
    "Laptop: install Docker Desktop or Docker Engine (https://docs.docker.com/get-docker/)." \
    "Debian, also without systemd: sudo cluster/node-image/engine.sh start"
  local why
  why=$(timeout 20 docker info 2>&1 >/dev/null) && return
  case $why in
    *ermission\ denied*) fail "Docker runs, but $(id -un) may not use it" "sudo usermod -aG docker $(id -un), then log in again." ;;
    *) fail "Docker is installed, but its engine does not answer" \
      "Start Docker Desktop, or: sudo systemctl start docker" "Without systemd: sudo cluster/node-image/engine.sh start" ;;
  esac
}
need_kind() {
  command -v kind >/dev/null || fail "kind is not installed" \
    "Get it: https://kind.sigs.k8s.io/docs/user/quick-start/#installation" \
    "With Go: go install sigs.k8s.io/kind@$kind_version. Without a container registry: sudo cluster/node-image/build.sh builds it, too."
}
need_kubectl() {
  command -v kubectl >/dev/null || fail "kubectl is not installed" "Get it: https://kubernetes.io/docs/tasks/tools/" \
    "Without a container registry: sudo cluster/node-image/build.sh builds it, too."
}
