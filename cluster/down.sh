#!/usr/bin/env bash
# Remove the cluster that up.sh made, with its containers, volumes, network and kubeconfig. Done twice, it does nothing.
# With --stop only its nodes are stopped; up.sh goes on with their data. Interrupted, it is to be run again.
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
own
end() {
  local code=$?
  exec 2>&"$errors"
  stop_jobs
  is_owner || exit $code
  rm -f "$work/owner"
  case $code in 130 | 143)
    echo "Interrupted: of $name is left: $(nodes | paste -sd ' ' -). The same again does the rest, cluster/up.sh starts it." >&2
    # without its nodes' containers all at hand a cluster is of no use: next time it is made anew
    [ "$stop" ] || [ ! -d "$work" ] || touch "$work/making" ;;
  esac
}
trap end EXIT
if [ "$stop" ]; then
  mapfile -t all < <(nodes)
  [ ${#all[@]} = 0 ] || run timeout 120 docker stop --time 20 "${all[@]}" >/dev/null
  step "the nodes of $name are stopped"
  exit
fi
remove_cluster
step "the cluster $name is gone"
