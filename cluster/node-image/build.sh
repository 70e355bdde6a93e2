#!/usr/bin/env bash
# Build a kind node image from Go modules and Debian packages, for a machine that reaches no container registry, and
# kind and kubectl beside it. Prints the image's name. Needs root, a Docker engine, Go >= 1.26 and Debian's gcc.
# About 9 minutes on 2 cores the first time; nothing once the image exists. Build files: $PGHC_CACHE, outside the tree.
. "$(dirname "$0")/../surroundings.sh"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PGHC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pghc}/node-image
bin=$cache/bin

# Kubernetes 1.34 on purpose: from 1.35 on the kubelet refuses machines with cgroup v1. The others are what kubeadm 1.34 asks for.
kind=v0.33.0 kubernetes=v1.34.4 etcd=3.6.5-0 coredns=v1.12.1 coredns_module=v1.14.7 pause=3.10 debian=trixie
image=kindest/node:$kubernetes-source
export DOCKER_BUILDKIT=0 # the engine that Debian packages has no BuildKit

say() { printf '  node image: %s\n' "$*" >&2; }
build() { docker build --quiet --tag "$1" "$2" >/dev/null 2>"$cache/build.log" || { cat "$cache/build.log" >&2; exit 1; }; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

tools() { # what the build itself needs, of Debian's packages
  local missing=()
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap debian-archive-keyring)
  command -v jq >/dev/null || missing+=(jq)
  command -v gcc >/dev/null || missing+=(gcc libc6-dev)
  [ ${#missing[@]} = 0 ] || { say "installing ${missing[*]}"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
}

binaries() { # Go's own cache knows what is up to date
  local v flags="-s -w"
  for v in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $v.gitVersion=$kubernetes -X $v.gitMajor=1 -X $v.gitMinor=34 -X $v.gitTreeState=clean"
    flags+=" -X $v.gitCommit=$kubernetes -X $v.buildDate=2026-01-01T00:00:00Z"
  done
  module() { # module DIRECTORY OUTPUT PACKAGE...: programs of a module whose dependencies are locked here
    say "compiling $1"
    (cd "$here/modules/$1" && go build -mod=mod -trimpath -ldflags "$flags" -o "$bin/$2" "${@:3}")
  }
  export CGO_ENABLED=0 GOBIN=$bin
  mkdir -p "$bin"
  say "compiling kind, coredns"
  go install -ldflags "-s -w" sigs.k8s.io/kind@$kind
  go install -ldflags "-s -w" github.com/coredns/coredns@$coredns_module
  module kubernetes "" k8s.io/kubernetes/cmd/{kubectl,kubeadm,kubelet,kube-proxy,kube-scheduler,kube-controller-manager,kube-apiserver}
  module etcd etcd go.etcd.io/etcd/server/v3
  gcc -static -Os -o "$bin/pause" "$here/pause.c"
}

bases() { # debian:trixie-slim under the name that Docker Hub uses, the node's system, and one for what handles packets
  base() { # base NAME PACKAGES
    have "$1" || { say "making $1"; mmdebstrap --quiet --variant=minbase --include="$2" --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' $debian - | docker import - "$1" >/dev/null; }
  }
  base debian:$debian-slim ca-certificates
  base pghc-node/net iptables,nftables,iproute2,kmod,conntrack,curl,jq,ca-certificates
  base pghc-node/os systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,hostname,containerd,runc,containernetworking-plugins
}

images() { # the images that kubeadm and the manifests start, one program each
  one() { # one IMAGE FILE PATH [BASE] [DOCKERFILE LINE]
    local context=$cache/images/${1//[\/:]/_}
    mkdir -p "$context"; cp "$2" "$context/"
    printf 'FROM %s\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nCOPY %s %s\n%s\n' \
      "${4:-scratch}" "${2##*/}" "$3" "${5:-}" > "$context/Dockerfile"
    build "$1" "$context"
    names+=("$1")
  }
  local c; names=()
  say "packing the control plane"
  for c in kube-apiserver kube-controller-manager kube-scheduler; do one registry.k8s.io/$c:$kubernetes "$bin/$c" /usr/local/bin/$c; done
  one registry.k8s.io/kube-proxy:$kubernetes "$bin/kube-proxy" /usr/local/bin/kube-proxy pghc-node/net
  one registry.k8s.io/etcd:$etcd "$bin/etcd" /usr/local/bin/etcd
  one registry.k8s.io/coredns/coredns:$coredns "$bin/coredns" /coredns scratch 'ENTRYPOINT ["/coredns"]'
  one registry.k8s.io/pause:$pause "$bin/pause" /pause scratch 'ENTRYPOINT ["/pause"]'
  one pghc-node/routes:source "$here/routes.sh" /usr/local/bin/routes.sh pghc-node/net 'CMD ["routes.sh"]'
}

node() { # kind's own node files, the kubelet, and those images unpacked into its containerd
  local context=$cache/images/node container
  say "putting the node together"
  rm -rf "$context"; mkdir -p "$context/files/kind"
  cp -r "$(go mod download -json sigs.k8s.io/kind@$kind | jq -r .Dir)"/images/base/files "$context/"
  chmod -R u+w "$context"
  cp -r "$here/manifests" "$context/files/kind/"; printf %s $kubernetes > "$context/files/kind/version"
  cp "$bin"/{kubeadm,kubelet,kubectl} "$here/Dockerfile" "$context/"
  build pghc-node/base "$context"
  container=$(docker run --detach --privileged --entrypoint sleep pghc-node/base infinity)
  # shellcheck disable=SC2064  # the container of now
  trap "docker rm --force $container >/dev/null" EXIT
  docker exec --detach "$container" containerd
  docker exec "$container" sh -c 'for i in $(seq 100); do ctr version >/dev/null 2>&1 && exit; sleep 0.2; done; exit 1'
  for name in "${names[@]}"; do
    docker save "$name" | docker exec --interactive "$container" ctr --namespace k8s.io images import --all-platforms --no-unpack - >/dev/null
  done
  docker exec "$container" sh -c 'kill $(cat /proc/[0-9]*/stat | awk "\$2 == \"(containerd)\" { print \$1 }")'; sleep 1
  docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change 'CMD []' "$container" "$image" >/dev/null
  docker rm --force "$container" >/dev/null; trap - EXIT
}

if ! have "$image" || ! [ -x "$bin/kind" ] || [ "${1:-}" = --again ]; then
  tools; binaries; bases; images; node
fi
echo "$image"
