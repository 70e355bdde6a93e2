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
regions='' replicas='' file='' node_image='' keep='' made='' loading=''
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
[[ $name =~ ^[a-z0-9][a-z0-9-]{0,40}$ ]] || fail "the name $name must be of a-z, 0-9 and hyphens"
use_cluster
stock=kindest/node:v1.34.0 source=kindest/node:v1.34.4-source # 1.34 runs on cgroup v1, too

# What a failed start has to say: who is not ready, what Kubernetes says of it, and the end of its log
explain() {
  local code=$?
  trap - EXIT
  [ $code = 0 ] && return
  [ ! "$loading" ] || kill "$loading" 2>/dev/null || true
  if [ "$made" ] && k get --raw /readyz >/dev/null 2>&1; then
    {
      echo; echo "Not ready:"
      k get pods -A -l $label --no-headers 2>/dev/null | awk '{ split($3, n, "/"); if (n[1] != n[2] && $4 != "Completed") print "  " $0 }'
      echo "Kubernetes' last warnings:"
      k get events -A --field-selector type=Warning --sort-by=.lastTimestamp --no-headers 2>/dev/null | tail -n 12 | cut -c 1-220 | sed 's/^/  /'
      k get pods -A -l $label --no-headers 2>/dev/null | awk '{ split($3, n, "/"); if (n[1] != n[2] && $4 != "Completed" && $4 != "Pending") print $1, $2 }' |
        head -n 6 | while read -r namespace pod; do
          echo "$namespace/$pod, the end of its log:"
          { k logs -n "$namespace" "$pod" --tail 8 || k logs -n "$namespace" "$pod" --previous --tail 8; } 2>&1 | cut -c 1-220 | sed 's/^/  /'
        done
    } >&2
  fi
  if [ "$made" = new ] && [ ! "$keep" ]; then
    echo "Removing the cluster that could not be completed; --keep leaves it." >&2
    "$here/down.sh" --name "$name" >/dev/null 2>&1 || true
  fi
  exit $code
}
trap explain EXIT
set -E
trap 'echo "error: cluster/up.sh, line $LINENO: $BASH_COMMAND" >&2' ERR

python=$root/.venv/bin/python
pghc() { (cd "$root" && "$python" -m pghc.cluster.kubernetes.manifests "$@") || exit 2; }

check() {
  need_docker
  (cd "$root" && "$python" -c 'import pghc.cli.commands' 2>/dev/null) || "$root/scripts/venv.sh" all
  mkdir -p "$work"
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
  if [ -r /proc/meminfo ]; then free=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo); else free=$(($(docker info --format '{{.MemTotal}}') / 1048576)); fi
  [ "$free" -ge $needed ] || fail "$free MB of memory are free, and the cluster needs about $needed MB" \
    "Close other programs, give Docker Desktop more memory (Settings, Resources), or ask for less: --regions 2 --replicas 0"
  disk=$(df -Pm "$(docker info --format '{{.DockerRootDir}}')" 2>/dev/null | awk 'NR == 2 { print $4 }') || true
  [ "${disk:-99999}" -ge 6000 ] || fail "$disk MB of disk are free where Docker keeps its files, and the cluster needs about 6000 MB" \
    "Free some: docker system df shows what takes it."
}

choose_node_image() {
  [ ! "$node_image" ] || return 0
  for node_image in $stock $source; do
    if docker image inspect "$node_image" >/dev/null 2>&1; then return; fi
  done
  step "fetching the node image $stock"
  node_image=$stock
  if timeout 600 docker pull --quiet $stock >/dev/null 2>"$work/pull"; then return; fi
  step "no registry can be reached ($(tail -n 1 "$work/pull" | cut -c 1-120)): building the node image, about 9 minutes, once"
  command -v go >/dev/null || fail "the stock node image cannot be pulled, and Go, to build one, is not installed" \
    "Go 1.26 or later: https://go.dev/dl; or carry $stock here with docker save and docker load; or --node-image."
  [ "$(id -u)" = 0 ] || fail "building the node image needs root" "sudo --preserve-env=HOME,PGHC_CACHE cluster/node-image/build.sh, once."
  node_image=$("$here/node-image/build.sh")
}

state() { # none, whole, stopped, paused or incomplete: what is there of the cluster
  local all running
  mapfile -t all < <(nodes)
  mapfile -t running < <(nodes --filter status=running)
  if [ ${#all[@]} = 0 ]; then echo none; return; fi
  if [ ${#all[@]} -lt 3 ] || [[ " ${all[*]} " != *" $name-control-plane "* ]]; then echo incomplete; return; fi
  if [ "$(nodes --filter status=paused)" ]; then echo paused; return; fi
  if [ ${#running[@]} -lt ${#all[@]} ]; then echo stopped; else echo whole; fi
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
  load_meanwhile & loading=$!
  kind create cluster --name "$name" --config "$work/kind.yaml" --image "$node_image" > "$work/kind.log" 2>&1 || {
    grep -E '✗|ERROR|rror:' "$work/kind.log" | cut -c 1-300 >&2
    fail "kind could not make the cluster; its whole log is $work/kind.log" "$(case $(cat "$work/kind.log") in
      *already\ allocated* | *address\ already\ in\ use*) echo "Another program took a port meanwhile: run it again." ;;
      *) echo "If a start was broken off before: cluster/down.sh, then again." ;; esac)"
  }
  echo "the cluster is made" >> "$work/kind.log"
  wait $loading || exit 2
}

load_meanwhile() { # while Kubernetes starts on the nodes: kind has configured their containerd by then and leaves it alone
  until grep -qE 'Starting control-plane|the cluster is made' "$work/kind.log"; do sleep 0.3; done
  load
}

begin() { # a cluster that is there: whole, or stopped by a reboot or by docker
  need_kind; need_kubectl
  if [ "$1" = stopped ]; then
    step "starting the stopped nodes of $name"
    # shellcheck disable=SC2046  # the names are words
    docker start $(nodes) >/dev/null 2>"$work/start" || fail "a node of $name does not start: $(grep -oE '127\.0\.0\.1:[0-9]+.*' "$work/start" || head -n 1 "$work/start")" \
      "Where a port is taken: end the program that has it (ss -ltnp), or cluster/down.sh, then again, for other ports."
  fi
  made=old
  kind export kubeconfig --name "$name" >/dev/null 2>&1
  for _ in {1..120}; do
    if k get --raw /readyz >/dev/null 2>&1; then return; fi
    sleep 1
  done
  fail "the control plane of $name does not answer after 2 minutes" "docker logs $name-control-plane says why; cluster/down.sh removes it."
}

build_images() {
  mapfile -t images < <("$here/images/build.sh")
  [ ${#images[@]} = 3 ] || fail "the images could not be built" "The lines above say why."
}

load() { # the images onto every region's node that lacks them
  local workers missing=() node
  mapfile -t workers < <(nodes | grep -v control-plane | sort)
  for node in "${workers[@]}"; do
    local there; there=$(docker exec "$node" ctr --namespace k8s.io images list --quiet)
    for image in "${images[@]}"; do
      if ! grep -qx "docker.io/$image" <<< "$there"; then missing+=("$node"); break; fi
    done
    # where the volumes of pghc/cluster/kubernetes/manifests.py are, for the servers' user
    docker exec "$node" sh -c 'for d in primary-0 zookeeper-0 replica-1 replica-2 replica-3 replica-4 replica-5; do [ -d /var/lib/pghc/$d ] || install -d -o 10001 -g 10001 -m 0700 /var/lib/pghc/$d; done'
  done
  [ ${#missing[@]} != 0 ] || return 0
  step "loading the images into ${#missing[@]} nodes"
  kind load docker-image "${images[@]}" --name "$name" --nodes "$(IFS=,; echo "${missing[*]}")" > "$work/load.log" 2>&1 || {
    tail -n 3 "$work/load.log" >&2; fail "the images could not be loaded into the nodes" "Is the disk full? The log is $work/load.log"
  }
}

install() {
  local names region jobs
  mapfile -t names < <(pghc names "$work/topology.json")
  pghc write "$work/topology.json" --images "${images[@]}" --manifests "$here/manifests" "$work/manifests"
  for region in "${names[@]}"; do
    k get namespace "$region" >/dev/null 2>&1 || k apply -f "$work/manifests/$region/namespace.json" >/dev/null
  done
  # One set of passwords for all regions: made once, from standard input, never on a command line
  k get secret pghc -n "${names[-1]}" >/dev/null 2>&1 || pghc secrets "$work/topology.json" | k apply -f - >/dev/null
  # A Job cannot be changed: another image means another run of it, which changes nothing that is there
  for region in "${names[@]}"; do
    jobs=$(k get job setup -n "$region" --ignore-not-found -o jsonpath='{.spec.template.spec.containers[0].image} {.status.failed}')
    [ ! "$jobs" ] || [ "$jobs" = "${images[2]} " ] || k delete job setup -n "$region" --wait >/dev/null
  done
  # What `apply` says is no measure: it calls stateful sets "configured" when nothing of them changed
  changed=
  if k diff -k "$work/manifests" >/dev/null 2>&1; then return; fi
  changed=yes
  step "applying the manifests"
  k apply -k "$work/manifests" > "$work/applied"
}

wait_for_pods() {
  local wanted ready mesh all said='' deadline=$((SECONDS + 600))
  all=$(pghc names "$work/topology.json" | wc -l)
  while :; do
    read -r ready wanted < <(k get statefulsets,deployments -A -l $label -o jsonpath='{range .items[*]}{.status.observedGeneration}{"="}{.metadata.generation} {.status.readyReplicas} {.spec.replicas} {.status.updatedReplicas}{"\n"}{end}' |
      awk '{ n = NF == 4 ? $2 : 0; want = NF == 4 ? $3 : $2; r += n < $4 ? n : $4; w += want } END { print r + 0, w + 0 }')
    mesh=$(k get jobs -A -l $label -o jsonpath='{range .items[*]}{.status.succeeded}{"\n"}{end}' | grep -c 1 || true)
    if [ "$ready" = "$wanted" ] && [ "$mesh" = "$all" ]; then break; fi
    if [ "$said" != "$ready $mesh" ]; then step "$ready of $wanted servers are ready, $mesh of $all regions are part of the mesh"; said="$ready $mesh"; fi
    [ $SECONDS -lt $deadline ] || fail "after $((SECONDS - start)) s not every server is ready" "Run it again when what is said below is mended; it goes on where it was."
    sleep 1
  done
}

check
found=$(state)
case $found in
  incomplete) only_a_part ;;
  paused) fail "the nodes of $name are paused, by somebody's docker pause" "docker unpause $(nodes --filter status=paused | paste -sd ' ' -)" ;;
  none) topology new; create ;;
  *)
    begin "$found"; topology existing
    [ "$(nodes | wc -l)" -gt "$(pghc names "$work/topology.json" | wc -l)" ] || only_a_part
    build_images; load ;;
esac
install
wait_for_pods
k get nodes -o jsonpath='{range .items[?(@.spec.unschedulable==true)]}{.metadata.name}{"\n"}{end}' | while read -r node; do
  step "uncordoning $node"; k uncordon "$node" >/dev/null
done
if [ ! "$changed" ]; then step "the cluster $name is up; nothing had to be changed"; else step "the cluster $name is up"; fi
echo "        pghc status --backend kind; kubectl --context kind-$name get all -A; cluster/down.sh"
