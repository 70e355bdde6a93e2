#!/usr/bin/env bash
# Remove the cluster that up.sh made, with its containers, volumes, network and kubeconfig entry. Done twice, it does nothing.
# With --stop only its nodes are stopped; up.sh goes on with their data.
. "$(dirname "$0")/common.sh"
stop=
while [ $# -gt 0 ]; do
  case $1 in
    --name) [ $# -gt 1 ] || fail "--name needs a value"; name=$2; shift 2 ;;
    --stop) stop=yes; shift ;;
    *) fail "unknown option $1" "Usage: cluster/down.sh [--name NAME] [--stop]" ;;
  esac
done
use_cluster
need_docker
mapfile -t all < <(nodes)
if [ "$stop" ]; then
  [ ${#all[@]} = 0 ] || docker stop --time 20 "${all[@]}" >/dev/null
  step "the nodes of $name are stopped"
  exit
fi
if command -v kind >/dev/null; then kind delete cluster --name "$name" >/dev/null 2>&1 || true; fi
mapfile -t all < <(nodes) # what kind did not know of, or all where kind is gone
[ ${#all[@]} = 0 ] || docker rm --force --volumes "${all[@]}" >/dev/null
docker network rm "$name" >/dev/null 2>&1 || true
rm -rf "$work"
step "the cluster $name is gone"
