#!/usr/bin/env bash
# Apply what `manifests write` has rendered into a directory: roll.sh DIRECTORY [kubectl's options, such as --context NAME]
# A new world at once. A change region by region, each when the one before is ready again, the leader of ZooKeeper's ensemble last.
# Passwords are made once, and so is what says who the primary is. What did not change is not touched, and then nothing is printed.
# Run again, it goes on where it was.
set -euo pipefail
[ $# -gt 0 ] && [ -f "$1/kustomization.yaml" ] || { echo "Usage: $0 DIRECTORY [kubectl's options]" >&2; exit 2; }
unset CDPATH KUBECTL_EXTERNAL_DIFF # another program's exit code says something else
root=$(cd "$(dirname "$0")/.." && pwd)
directory=$1; shift
options=("$@")
part=app.kubernetes.io/part-of=pghc setup=app.kubernetes.io/component=setup
k() { timeout --foreground 720 kubectl "${options[@]}" "$@"; }
pghc() { "$root/.venv/bin/python" -m pghc.cluster.kubernetes.manifests "$@"; }
is_there() { [ "$(k get "$@" --ignore-not-found -o name)" ]; }

mapfile -t regions < <(cd "$directory" && for each in */namespace.json; do echo "${each%/*}"; done)
topology=$directory/${regions[0]}/topology/topology.json

for region in "${regions[@]}"; do
  is_there namespace "$region" || k apply -f "$directory/$region/namespace.json" >/dev/null
done

new='' nothing=(--new)
for region in "${regions[@]}"; do if is_there statefulset zookeeper -n "$region"; then nothing=(); else new=yes; fi; done

# By pipes only: never on a command line, in a file or in a log
there=$(k get secrets,configmaps,services -A -l $part -o json)
missing=$(printf %s "$there" | pghc once "$topology" --existing - "${nothing[@]}")
[ ! "$missing" ] || printf %s "$missing" | k create -f - >/dev/null

# Where every region is part of the mesh nothing is new any more: from then on a primary's empty volume is refused
mapfile -t made < <(k get jobs -A -l $part,$setup -o jsonpath='{range .items[?(@.status.succeeded==1)]}{.metadata.namespace}{"\n"}{end}' | sort -u)
if [ ${#made[@]} -ge ${#regions[@]} ]; then
  k get configmaps -A -l $part -o jsonpath='{range .items[?(@.data.new=="yes")]}{.metadata.namespace}{"\n"}{end}' |
    while read -r region; do k patch configmap state -n "$region" --type merge -p '{"data":{"new":null}}' >/dev/null; done
fi

# Setup Jobs of other images are of no use any more, and one that failed would never be tried again
k get jobs -A -l $part,$setup -o jsonpath='{range .items[*]}{.metadata.namespace} {.metadata.name} {.status.failed}{"\n"}{end}' |
  while read -r region job failed; do
    [ -f "$directory/$region/kustomization.yaml" ] || continue
    if [ "$failed" ] || ! grep -qw -- "$job" "$directory/$region/kustomization.yaml"; then k delete job "$job" -n "$region" --wait >/dev/null; fi
  done

if [ "$new" ]; then
  echo "applying the manifests"
  k apply -k "$directory" >/dev/null
  exit
fi

# What `apply` says is no measure: it calls stateful sets "configured" when nothing of them changed
if k diff -k "$directory" >/dev/null 2>&1; then exit; fi
leads() { # leads REGION
  k exec zookeeper-0 -n "$1" -- bash -c "exec 3<>/dev/tcp/127.0.0.1/2181 && echo srvr >&3 && timeout 3 grep -q 'Mode: leader' <&3" 2>/dev/null
}
sets() { # sets REGION: each and the number of its last change
  k get statefulsets,deployments -n "$1" -l $part -o jsonpath='{range .items[*]}{.kind}/{.metadata.name} {.metadata.generation}{"\n"}{end}'
}
first=() last=()
for region in "${regions[@]}"; do if leads "$region"; then last+=("$region"); else first+=("$region"); fi; done
[ ! -f "$directory/volumes.json" ] || k apply -f "$directory/volumes.json" >/dev/null
for region in "${first[@]}" "${last[@]}"; do
  if k diff -k "$directory/$region" >/dev/null 2>&1; then continue; fi
  echo "applying what has changed in $region"
  before=$(sets "$region")
  k apply -k "$directory/$region" >/dev/null
  # of the others one may have lost its data, and wait for somebody to decide
  mapfile -t changed < <(sets "$region" | grep -vxF -- "$before" | cut -d ' ' -f 1)
  for each in "${changed[@]}"; do k rollout status "$each" -n "$region" --timeout 600s >/dev/null; done
  k wait jobs -n "$region" -l $setup --for condition=complete --timeout 600s >/dev/null
done
