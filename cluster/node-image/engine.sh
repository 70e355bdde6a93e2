#!/usr/bin/env bash
# Start a Docker engine on a Debian machine that has none running: `engine.sh start`, `engine.sh stop`. Needs root, no systemd.
# Where Docker runs already (any laptop), start does nothing and stop stops nothing.
. "$(dirname "$0")/../surroundings.sh"
set -euo pipefail
state=${PGHC_ENGINE:-/var/lib/pghc-engine}

running() { timeout 20 docker info >/dev/null 2>&1; }

# A machine without CAP_SYS_RESOURCE cannot start privileged containers with an old engine ("unable to apply caps").
# Then a runtime in front of runc leaves that capability out of what the engine asks for.
runtime() {
  local bounding; bounding=$(awk '/^CapBnd/ { print $2 }' /proc/self/status)
  (( 0x$bounding >> 24 & 1 )) && return
  cat > "$state/runc" <<'RUNC'
#!/usr/bin/env bash
without='(.. | objects | select(has("bounding"))) |= with_entries(.value |= map(select(. != "CAP_SYS_RESOURCE")))'
before=
for argument in "$@"; do
  case $before in
    --bundle | -b) file=$argument/config.json ;;
    --process | -p) file=$argument ;;
    *) file= ;;
  esac
  if [ "$file" ]; then jq "$without" "$file" > "$file.new" && cat "$file.new" > "$file" && rm "$file.new"; fi
  before=$argument
done
exec runc "$@"
RUNC
  chmod +x "$state/runc"
  echo --add-runtime "less=$state/runc" --default-runtime less
}

start() {
  if running; then return; fi
  if [ "$(id -u)" != 0 ]; then echo "Docker does not run, and starting it needs root. Start it, or: sudo $0 start" >&2; exit 2; fi
  if ! { command -v dockerd && command -v jq; } >/dev/null; then
    command -v apt-get >/dev/null || { echo "Docker does not run, and only Debian's can be installed and started here. Start yours." >&2; exit 2; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io docker-cli iptables jq >/dev/null 2>&1 ||
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables jq >/dev/null
    if running; then return; fi
  fi
  mkdir -p "$state"
  # shellcheck disable=SC2046  # the options are words
  setsid nohup dockerd $(runtime) > "$state/dockerd.log" 2>&1 < /dev/null &
  echo $! > "$state/dockerd.pid"
  for _ in {1..120}; do
    if running; then return; fi
    sleep 0.25
  done
  tail -n 20 "$state/dockerd.log" >&2
  echo "The Docker engine did not start within 30 s; its log is $state/dockerd.log" >&2
  exit 1
}

stop() {
  local pid; pid=$(cat "$state/dockerd.pid" 2>/dev/null) || return 0
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    kill "$pid"
    for _ in {1..120}; do
      [ -d "/proc/$pid" ] || break
      sleep 0.25
    done
  fi
  rm -f "$state/dockerd.pid"
}

case ${1:-start} in
  start | stop) "${1:-start}" ;;
  *) echo "Usage: $0 start|stop" >&2; exit 2 ;;
esac
