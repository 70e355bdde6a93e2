#!/usr/bin/env bash
# Say what is there of the cluster: its nodes, its servers, and whether they answer. Exit code 0: all of it, 1: not all, 2: nothing.
. "$(dirname "$0")/common.sh"
[ "${1:-}" != --name ] || name=$2
use_cluster
need_docker
if [ "$(nodes | wc -l)" = 0 ]; then echo "There is no cluster $name: cluster/up.sh makes one."; exit 2; fi
bounded 20 docker ps --all --filter "label=io.x-k8s.kind.cluster=$name" --format 'table {{.Names}}\t{{.Status}}'
need_kubectl
cd "$root" && PGHC_KIND=$name exec .venv/bin/python -m pghc status --backend kind
