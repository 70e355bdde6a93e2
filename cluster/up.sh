#!/usr/bin/env bash
# Make a multi-region Kubernetes cluster with kind and run the lab on it; what is there already stays.
. "$(dirname "$0")/common.sh"

usage() {
  cat <<'TEXT'
Usage: cluster/up.sh [options]
  --regions N         only the first N regions of the topology (2 to 5)
  --replicas N        so many replicas in each region (0 to 5)
  --topology FILE     regions and delays, as in pghc/topology.toml
  --node-image IMAGE  kind's node image; default: the stock image, or one built here where no registry can be reached
  --name NAME         the cluster's name; default: pghc-USER
  --keep              leave a cluster that could not be completed, to look into
TEXT
}
regions='' replicas='' file='' node_image='' keep='' made=''
while [ $# -gt 0 ]; do
  case $1 in
    --regions | --replicas | --topology | --node-image | --name)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case $1 in
        --regions) regions=$2 ;; --replicas) replicas=$2 ;; --topology) file=$2 ;; --node-image) node_image=$2 ;; --name) name=$2 ;;
      esac
      shift 2 ;;
    --keep) keep=yes; shift ;;
    --help | -h) usage; exit ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
done
use_cluster
# 1.34 runs on cgroup v1, too; the digest is the one that kind's release 0.30 names
stock=kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a
source=kindest/node:v1.34.4-source

# What a start that failed or was interrupted has to say: who is not ready, what Kubernetes says of it, the end of its log
explain() {
  local code=$?
  trap - EXIT ERR
  exec 2>&"$errors"
  is_owner || exit $code
  trap '' INT TERM HUP # tidying up is bounded; a second Ctrl-C does not leave half of it
  stop_jobs
  rm -rf "${work:?}/tmp" # archives of images on their way into nodes
  if [ $code = 130 ] || [ $code = 143 ]; then
    if making && [ ! "$keep" ]; then
      echo "Interrupted while the cluster $name was made: removing what there is of it, which takes some seconds." >&2
      remove_cluster
    else
      echo "Interrupted. cluster/up.sh goes on where it was; cluster/down.sh removes what is there." >&2
    fi
  elif [ $code != 0 ]; then
    if [ "$made" ] && k get --raw /readyz >/dev/null 2>&1; then what_is_not_ready >&2; fi
    if [ "$made" = new ] && [ ! "$keep" ]; then
      echo "Removing the cluster that could not be completed; --keep leaves it." >&2
      remove_cluster
    fi
  fi
  rm -f "$work/owner"
  exit $code
}
what_is_not_ready() {
  echo; echo "Not ready:"
  k get pods -A -l $label --no-headers 2>/dev/null | awk '{ split($3, n, "/"); if (n[1] != n[2] && $4 != "Completed") print "  " $0 }'
  echo "Kubernetes' last warnings:"
  k get events -A --field-selector type=Warning --sort-by=.lastTimestamp --no-headers 2>/dev/null | tail -n 12 | cut -c 1-220 | sed 's/^/  /'
  k get pods -A -l $label --no-headers 2>/dev/null | awk '{ split($3, n, "/"); if (n[1] != n[2] && $4 != "Completed" && $4 != "Pending") print $1, $2 }' |
    head -n 6 | while read -r namespace pod; do
      echo "$namespace/$pod, the end of its log:"
      { k logs -n "$namespace" "$pod" --tail 8 || k logs -n "$namespace" "$pod" --previous --tail 8; } 2>&1 | cut -c 1-220 | sed 's/^/  /'
    done
}
trap explain EXIT
set -E
trap 'echo "error: cluster/up.sh, line $LINENO: $BASH_COMMAND" >&2' ERR

python=$root/.venv/bin/python
pghc() { (cd "$root" && "$python" -m pghc.cluster.kubernetes.manifests "$@") || exit 2; }

check() {
  need_docker
  (cd "$root" && "$python" -c 'import pghc.cli.commands' 2>/dev/null) || "$root/scripts/venv.sh" all
  own
  rm -rf "${work:?}/tmp"
  if making; then
    step "an earlier start or removal of $name was broken off: it begins anew"
    remove_cluster; own
  fi
}

# The cluster's own topology, or the one asked for
topology() {
  local asked=()
  [ ! "$file" ] || asked+=(--file "$(realpath "$file")")
  [ ! "$regions" ] || asked+=(--regions "$regions")
  [ ! "$replicas" ] || asked+=(--replicas "$replicas")
  pghc topology "${asked[@]}" > "$work/asked.json"
  if [ "$1" = existing ]; then
    k get configmaps -A -l $label --field-selector metadata.name=topology -o jsonpath='{.items[0].data.topology\.json}' > "$work/topology.json" 2>/dev/null || true
    if [ -s "$work/topology.json" ]; then
      if [ ${#asked[@]} -gt 0 ] && ! "$python" -c 'import json, sys; a, b = (json.load(open(f)) for f in sys.argv[1:]); sys.exit(a != b)' "$work/topology.json" "$work/asked.json"; then
        fail "the cluster $name has another topology ($(pghc names "$work/topology.json" | paste -sd ' ' -))" "cluster/down.sh, then again; or --name for a second cluster."
      fi
      return
    fi
  fi
  mv "$work/asked.json" "$work/topology.json"
}

room() { # before a cluster is made: memory and disk
  local needed=$((700 + $(pghc names "$work/topology.json" | wc -l) * 550)) free disk
  if [ -r /proc/meminfo ]; then free=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo); else free=$(($(bounded 20 docker info --format '{{.MemTotal}}') / 1048576)); fi
  [ "$free" -ge $needed ] || fail "$free MB of memory are free, and the cluster needs about $needed MB" \
    "Close other programs, give Docker Desktop more memory (Settings, Resources), or ask for less: --regions 2 --replicas 0"
  disk=$(df -Pm "$(bounded 20 docker info --format '{{.DockerRootDir}}')" 2>/dev/null | awk 'NR == 2 { print $4 }') || true
  [ "${disk:-99999}" -ge 6000 ] || fail "$disk MB of disk are free where Docker keeps its files, and the cluster needs about 6000 MB" \
    "Free some: docker system df shows what takes it."
}

choose_node_image() {
  [ ! "$node_image" ] || return 0
  for node_image in $stock $source; do
    if docker image inspect "$node_image" >/dev/null 2>&1; then return; fi
  done
  step "fetching the node image ${stock%@*}"
  node_image=$stock
  if run timeout 600 docker pull --quiet $stock >/dev/null 2>"$work/pull"; then return; fi
  step "no registry can be reached ($(tail -n 1 "$work/pull" | cut -c 1-120)): building the node image, about 9 minutes, once"
  command -v go >/dev/null || fail "the stock node image cannot be pulled, and Go, to build one, is not installed" \
    "Go 1.26 or later: https://go.dev/dl; or carry ${stock%@*} here with docker save and docker load, and --node-image ${stock%@*}."
  [ "$(id -u)" = 0 ] || fail "building the node image needs root" "sudo --preserve-env=HOME,PGHC_CACHE cluster/node-image/build.sh, once."
  run timeout 7200 "$here/node-image/build.sh" > "$work/built" || exit 2
  node_image=$(cat "$work/built")
}

state() { # none, running, stopped (some node at least), paused or incomplete: what containers are there of the cluster
  local all running
  mapfile -t all < <(nodes)
  mapfile -t running < <(nodes --filter status=running)
  if [ ${#all[@]} = 0 ]; then echo none; return; fi
  if [ ${#all[@]} -lt 3 ] || [[ " ${all[*]} " != *" $name-control-plane "* ]]; then echo incomplete; return; fi
  if [ "$(nodes --filter status=paused)" ]; then echo paused; return; fi
  if [ ${#running[@]} -lt ${#all[@]} ]; then echo stopped; else echo running; fi
}
only_a_part() {
  made='' # nothing more need be said
  fail "of the cluster $name only a part is left ($(nodes | paste -sd ' ' -))" "cluster/down.sh removes the rest, then again."
}

create() {
  room
  choose_node_image
  need_kind; need_kubectl
  build_images
  pghc config "$work/topology.json" --name "$name" > "$work/kind.yaml"
  : > "$work/kind.log"
  made=new
  step "making the cluster $name: a control plane and a node for each of $(pghc names "$work/topology.json" | paste -sd ' ' -)"
  echo > "$work/making"
  background timeout 900 kind create cluster --name "$name" --config "$work/kind.yaml" --image "$node_image" --kubeconfig "$work/kubeconfig" > "$work/kind.log" 2>&1
  local kind=${jobs[-1]}
  echo "$kind" > "$work/making"
  background load_meanwhile
  wait "$kind" || {
    grep -E '✗|ERROR|rror:' "$work/kind.log" | cut -c 1-300 >&2
    fail "kind could not make the cluster; its whole log is $work/kind.log" "$(case $(cat "$work/kind.log") in
      *already\ allocated* | *address\ already\ in\ use*) echo "Another program took a port meanwhile: run it again." ;;
      *) echo "Its last lines are above; run it again with --keep to look into what is there." ;; esac)"
  }
  rm "$work/making" # every node has joined
  echo "the cluster is made" >> "$work/kind.log"
  wait "${jobs[-1]}" || exit 2
  jobs=()
}

load_meanwhile() { # while Kubernetes starts on the nodes: kind has configured their containerd by then and leaves it alone
  trap - EXIT ERR
  until grep -qE 'Starting control-plane|the cluster is made' "$work/kind.log"; do
    kill -0 $$ && making || exit 2
    sleep 0.3
  done
  load
}

begin() { # a cluster that is there: running, or with nodes stopped by a reboot, by docker or by a fault
  need_kind; need_kubectl
  if [ "$1" = stopped ]; then
    local stopped; mapfile -t stopped < <(nodes --filter status=exited --filter status=created)
    step "starting ${stopped[*]}"
    run timeout 120 docker start "${stopped[@]}" >/dev/null 2>"$work/start" || fail "a node of $name does not start: $(grep -oE '127\.0\.0\.1:[0-9]+.*' "$work/start" || head -n 1 "$work/start")" \
      "Where a port is taken: end the program that has it (ss -ltnp), or cluster/down.sh, then again, for other ports."
  fi
  made=old
  local deadline=$((SECONDS + 120))
  bounded 60 kind export kubeconfig --name "$name" --kubeconfig "$work/kubeconfig" >/dev/null 2>&1
  while :; do
    if k get --raw /readyz >/dev/null 2>&1; then return; fi
    [ $SECONDS -lt $deadline ] || break
    sleep 1
  done
  fail "the control plane of $name does not answer after 2 minutes" "docker logs $name-control-plane says why; cluster/down.sh removes it."
}

build_images() {
  run timeout 3600 "$here/images/build.sh" > "$work/images" || true
  mapfile -t images < "$work/images"
  [ ${#images[@]} = 3 ] || fail "the images could not be built" "The lines above say why."
}

images_of() { # images_of NODE: its container runtime may be busy, or not be up yet
  local n
  for n in 1 2 3 4 5 6; do
    if bounded 60 docker exec "$1" ctr --namespace k8s.io images list --quiet 2> "$work/ctr"; then return; fi
    sleep "$n"
  done
  cat "$work/ctr" >&2
  fail "the container runtime of $1 does not answer" "\`docker logs $1\` says why; cluster/up.sh goes on where it was."
}

load() { # the images onto every region's node that lacks them
  local workers missing=() node
  mapfile -t workers < <(nodes | grep -v control-plane | sort)
  for node in "${workers[@]}"; do
    local there; there=$(images_of "$node")
    for image in "${images[@]}"; do
      if ! grep -qx "docker.io/$image" <<< "$there"; then missing+=("$node"); break; fi
    done
    # where the volumes of pghc/cluster/kubernetes/manifests.py are, for the servers' user
    bounded 60 docker exec "$node" sh -c 'for d in primary-0 zookeeper-0 replica-1 replica-2 replica-3 replica-4 replica-5; do [ -d /var/lib/pghc/$d ] || install -d -o 10001 -g 10001 -m 0700 /var/lib/pghc/$d; done'
  done
  [ ${#missing[@]} != 0 ] || return 0
  step "loading the images into ${#missing[@]} nodes"
  mkdir -p "$work/tmp" # kind leaves its archive behind when it is interrupted
  TMPDIR=$work/tmp bounded 900 kind load docker-image "${images[@]}" --name "$name" --nodes "$(IFS=,; echo "${missing[*]}")" > "$work/load.log" 2>&1 || {
    tail -n 3 "$work/load.log" >&2; fail "the images could not be loaded into the nodes" "Is the disk full? The log is $work/load.log"
  }
}

install() {
  pghc write "$work/topology.json" --images "${images[@]}" --manifests "$here/manifests" "$work/manifests"
  : > "$work/rolled"
  run roll || exit 2
}
roll() {
  trap - EXIT ERR
  "$here/roll.sh" "$work/manifests" --kubeconfig "$work/kubeconfig" --context "kind-$name" |
    while read -r line; do step "$line"; echo "$line" >> "$work/rolled"; done
}

wait_for_pods() {
  local wanted ready mesh all said='' begin=$SECONDS deadline=$((SECONDS + 600))
  all=$(pghc names "$work/topology.json" | wc -l)
  while :; do
    read -r ready wanted < <(k get statefulsets,deployments -A -l $label -o jsonpath='{range .items[*]}{.status.observedGeneration}{"="}{.metadata.generation} {.status.readyReplicas} {.spec.replicas} {.status.updatedReplicas}{"\n"}{end}' |
      awk '{ n = NF == 4 ? $2 : 0; want = NF == 4 ? $3 : $2; r += n < $4 ? n : $4; w += want } END { print r + 0, w + 0 }')
    mesh=$(k get jobs -A -l $label -o jsonpath='{range .items[*]}{.status.succeeded}{"\n"}{end}' | grep -c 1 || true)
    if [ "$ready" = "$wanted" ] && [ "$mesh" = "$all" ]; then break; fi
    # a server whose data is lost does not become ready by waiting
    if [ "$made" != new ] && [ "$mesh" = "$all" ] && [ $((SECONDS - begin)) -gt 5 ] && { servers; [ -s "$work/lacks" ]; } && [ $((ready + $(wc -l < "$work/lacks"))) -ge "$wanted" ]; then break; fi
    if [ "$said" != "$ready $mesh" ]; then step "$ready of $wanted servers are ready, $mesh of $all regions are part of the mesh"; said="$ready $mesh"; fi
    [ $SECONDS -lt $deadline ] || fail "after $((SECONDS - start)) s not every server is ready" "Run it again when what is said below is mended; it goes on where it was."
    sleep 1
  done
}

# Of the servers that do not answer: into lacks those that cannot start for what they lack, with the remedy; into silent the others
servers() {
  # its exit code tells of links, too, that somebody may have cut; they are not waited for
  (cd "$root" && { PGHC_KIND=$name bounded 60 "$python" -m pghc status --backend kind --json 2>/dev/null || true; }) |
    "$python" -c '
import json, sys
away = [node for node in json.load(sys.stdin)["nodes"] if not node["accessible"]]
for path, lacks in zip(sys.argv[1:], (True, False)):
    with open(path, "w") as file:
        file.writelines("{name}: {detail}\n".format(**node) for node in away if bool(node["lack"]) == lacks)
' "$work/lacks" "$work/silent" 2>/dev/null || { : > "$work/lacks"; echo all > "$work/silent"; }
}

# Every server answers where its clients dial it: what Kubernetes knows of a node that was away may be old
wait_for_answers() {
  local deadline=$((SECONDS + 300))
  while :; do
    servers
    [ -s "$work/silent" ] || return 0
    [ $SECONDS -lt $deadline ] || fail "these servers are ready, as Kubernetes says, and do not answer: $(cut -d : -f 1 "$work/silent" | paste -sd ' ' -)" "Run it again; it goes on where it was."
    sleep 1
  done
}

main() {
  check
  found=$(state)
  if [ "$found" = running ] || [ "$found" = stopped ]; then
    begin "$found"
    joined=$(k get nodes -o name)
    namespaces=$(k get namespaces -l $label -o name)
    if [ "$(wc -l <<< "$joined")" != "$(nodes | wc -l)" ] && [ ! "$namespaces" ]; then
      step "not all nodes of $name have joined it, and nothing runs there: it begins anew"
      remove_cluster; own; made='' found=none
    fi
  fi
  case $found in
    incomplete) only_a_part ;;
    paused) fail "the nodes of $name are paused, by somebody's docker pause" "docker unpause $(nodes --filter status=paused | paste -sd ' ' -)" ;;
    none) topology new; create ;;
    *)
      topology existing
      [ "$(nodes | wc -l)" -gt "$(pghc names "$work/topology.json" | wc -l)" ] || only_a_part
      build_images; run load || exit 2 ;;
  esac
  install
  wait_for_pods
  k get nodes -o jsonpath='{range .items[?(@.spec.unschedulable==true)]}{.metadata.name}{"\n"}{end}' | while read -r node; do
    step "uncordoning $node"; k uncordon "$node" >/dev/null
  done
  wait_for_answers
  # the whole mesh is made: from now on a primary's empty volume is refused, not initialised
  k get configmaps -A -l $label -o jsonpath='{range .items[?(@.data.new=="yes")]}{.metadata.namespace}{"\n"}{end}' |
    while read -r region; do k patch configmap state -n "$region" --type merge -p '{"data":{"new":null}}' >/dev/null; done
  while read -r server; do step "$server"; done < "$work/lacks"
  if [ ! -s "$work/rolled" ]; then step "the cluster $name is up; nothing had to be changed"; else step "the cluster $name is up"; fi
  echo "        pghc status --backend kind; cluster/down.sh; kubectl --kubeconfig $work/kubeconfig get all -A"
}
main; exit # read as a whole before it runs: whoever updates the repository meanwhile does no harm
