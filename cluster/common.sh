# What up.sh, down.sh and status.sh share. Sourced by them.
# shellcheck shell=bash disable=SC2034  # used where it is sourced
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${here%/*}
export PGHC_CACHE=${PGHC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pghc}
PATH=$PATH:$PGHC_CACHE/node-image/bin # kind and kubectl, where they were built together with the node image
kind_version=v0.33.0

user=$(id -un | tr '[:upper:]_.' '[:lower:]--' | tr -cd 'a-z0-9-')
name=${PGHC_KIND:-pghc-$user} # a name a user, and so containers, a network and a kubeconfig entry of their own
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
  export KIND_EXPERIMENTAL_DOCKER_NETWORK=$name
  work=$PGHC_CACHE/kind/$name
}
k() { kubectl --context "kind-$name" "$@"; }
nodes() { docker ps --all --filter "label=io.x-k8s.kind.cluster=$name" --format '{{.Names}}' "$@"; }

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
