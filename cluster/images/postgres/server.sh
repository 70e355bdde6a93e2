#!/bin/bash
# One Postgres server of $REGION: `server.sh primary` or `server.sh replica`. That says its name, and with it what passwords it
# has; its part may change. Settings are in /etc/pghc, passwords in /run/secrets/pghc; none is on a command line.
#
# /run/state says who is the region's primary, and whether the cluster is new. Only then does an empty volume become a primary's.
# Later it is refused, as is the data of a former primary: the server waits until somebody has decided, and says why in $lacks. A
# replica with an empty volume copies its primary's data; nothing is lost by that.
#
# Postgres is a child of this script. So it is stopped, copied and started again with no end of the container, which Kubernetes
# would start later each time. With `kubectl exec`, in the pod that runs:
#   server.sh lose                        end it at once and delete its data
#   server.sh retire                      stop it in order, unless it is paused; prints "ran" if it ran
#   server.sh order again                 start it again, taking the rows of all others
#   server.sh order copy SERVICE PART     start it with a copy of that primary's data, as a replica or as a primary
set -euo pipefail
settings=/etc/pghc secrets=/run/secrets/pghc state=/run/state
# In the pod's memory: stay down; what to do before the next start; no server runs yet; why it cannot; why an order failed; its
# process; it had its data in this pod
held=/tmp/held order=/tmp/order waits=/tmp/waits lacks=/tmp/lacks failed=/tmp/failed running=/tmp/running begun=/tmp/begun
said='' stale=''
say() { echo "server.sh: $*"; }

# What is done to a server that runs

servers() { grep -lxE "${1:-postgres|pg_basebackup|initdb}" /proc/[0-9]*/comm 2>/dev/null | cut -d / -f 3 || true; }
kill_servers() {
  local all; mapfile -t all < <(servers)
  [ ${#all[@]} = 0 ] || kill -KILL "${all[@]}" 2>/dev/null || true
  kill -CONT -1 2>/dev/null || true # this script may have been paused with it
}
is_paused() { [ -e $running ] && grep -q '^State:.T' "/proc/$(cat $running)/status" 2>/dev/null; }
end_server() { # in order, if it is one that runs, and else at once; when this returns it is gone
  local n
  is_paused || kill -INT "$(cat $running 2>/dev/null || echo none)" 2>/dev/null || true
  for ((n = 0; n < 200; n++)); do
    [ "$(servers)" ] || return 0
    if [ ! -e $running ] || is_paused || [ $n = 150 ]; then kill_servers; fi
    sleep 0.1
  done
  return 1
}

case $1 in
  lose) touch $held; rm -f $order; kill_servers; end_server; rm -rf "$PGDATA" "$PGDATA.new"; exit ;;
  retire)
    if [ ! "$(servers)" ] || is_paused; then exit; fi
    touch $held; end_server; echo ran; exit ;;
  order)
    touch $held; rm -f $failed # until all of the old one has ended no other begins
    echo "${*:2}" > $order.new; mv $order.new $order
    end_server; kill -CONT -1 2>/dev/null || true
    rm -f $held
    while [ -e $order ]; do # it is gone before the server starts that it is for: another one began at the same moment
      if [ "$(servers postgres)" ] && [ -e $order ]; then end_server; fi
      sleep 0.1
    done
    [ ! -e $failed ] || { cat $failed >&2; exit 1; }
    exit ;;
  primary) name=$REGION-primary ;;
  replica) name=$REGION-$HOSTNAME ;;
  *) say "unknown role $1"; exit 2 ;;
esac
slot=${name//-/_}

# What a server does before it starts

ask() { psql -XAtc "$1" "service=$REGION-primary" 2>/tmp/why; } # ask QUERY: the region's primary

wait_with() { # wait_with WHAT: why it does not start yet, once in the log
  [ "$*" = "$said" ] || say "$*"
  said=$*
  return 1
}

lack() { # lack WHAT REMEDY: that it will not start before somebody has decided
  echo "$1" > $lacks
  wait_with "$name cannot start: $1. $2"
}

# A mounted ConfigMap may be a minute old: another one that answers as the primary is
is_primary() {
  [ "$(cat $state/primary)" = "$name" ] &&
    [ "$(ask "select not pg_is_in_recovery() and current_setting('cluster_name') <> '$name'")" != t ]
}

make() {
  say "making the data of $name"
  rm -rf "$PGDATA" "$PGDATA.new" # half made by a start that was cut short
  initdb --pgdata="$PGDATA.new" --username=pghc_admin --pwfile=<(printf %s "$(cat $secrets/admin-password)") \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C --wal-segsize=4 >/dev/null && mv "$PGDATA.new" "$PGDATA"
}

copy() { # copy SERVICE PART; made beside and moved when it is whole, for half a copy is none
  say "copying the data of $1 to $name, a $2"
  rm -rf "$PGDATA" "$PGDATA.new"
  pg_basebackup --pgdata="$PGDATA.new" --dbname="service=$1" --wal-method=stream --checkpoint=fast 2>/tmp/why || return 1
  if [ "$2" = replica ]; then
    : > "$PGDATA.new/postgresql.auto.conf"
    touch "$PGDATA.new/standby.signal"
  else # until it has subscriptions of its own, not those of the server that it is a copy of
    echo 'max_logical_replication_workers = 0' > "$PGDATA.new/postgresql.auto.conf"
  fi
  mv "$PGDATA.new" "$PGDATA"
}

obey() {
  local what done=yes
  read -r -a what < $order
  case ${what[0]} in
    again) : > "$PGDATA/postgresql.auto.conf" || done= ;;
    copy) copy "${what[1]}" "${what[2]}" || done= ;;
  esac
  if [ ! "$done" ]; then { echo "${what[*]}:"; cat /tmp/why; } > $failed; fi
  rm -f $order
  [ "$done" ]
}

# A replica goes on with its own data while the primary keeps the log that it lacks, or while the primary is away. Without
# a slot (the primary was made anew), or with one that fell too far behind, only a new copy can follow.
keeps_log() { ask "select coalesce(wal_status, 'reserved') from pg_replication_slots where slot_name = '$slot' and not pg_is_in_recovery()"; }

may_start() { # whether it may, now; whatever was to be done for it is done then
  local kept
  [ ! -e $held ] || return 1 # a fault has not ended yet
  if [ -e $order ]; then obey; return; fi
  if [ ! "$stale" ] && [ -f "$PGDATA/global/pg_control" ]; then
    if [ -f "$PGDATA/standby.signal" ]; then
      if ! kept=$(keeps_log) || [[ $kept =~ reserved|extended ]] || [ "$(ask 'select pg_is_in_recovery()')" != f ]; then return 0; fi
      say "the primary keeps no log for $name (slot $slot: ${kept:-none})"
      stale=yes
    else
      if is_primary; then return 0; fi
      lack "its data is that of a former primary" "\`pghc up\` replaces it"
      return 1
    fi
  elif [ "$(cat $state/primary)" = "$name" ]; then
    if [ -s $state/new ] && [ ! -e $begun ]; then make; return; fi
    lack "its data is gone" "\`pghc promote $REGION\` makes a replica the primary; where none is left, \`pghc rebuild $REGION\`"
    return 1
  fi
  if ! kept=$(keeps_log); then wait_with "waiting for $REGION-primary: $(head -n 1 /tmp/why)"; return 1; fi
  if [[ ! $kept =~ reserved|extended ]]; then wait_with "waiting for $REGION-primary: no slot $slot yet"; return 1; fi
  copy "$REGION-primary" replica || wait_with "copying failed: $(head -n 1 /tmp/why)" && stale=
}

# How this server dials others: by the names of services, as the one role that may replicate
export PGSERVICEFILE=$settings/pg_service.conf PGPASSFILE=/tmp/pgpass
(umask 077; printf '*:*:*:replicator:%s\n' "$(cat $secrets/replicator-password)" > "$PGPASSFILE")

rm -f $running $waits # of a container before this one
stopping='' server=''
stop() { # as Kubernetes asks for it. Fast: roll back and leave, do not wait for clients
  stopping=yes
  [ ! "$server" ] || kill -INT "$server" 2>/dev/null || true
}
trap stop INT TERM

while :; do
  touch $waits
  until may_start; do
    [ ! "$stopping" ] || exit 0
    sleep 0.3
  done
  if [ -e $held ] || [ -e $order ]; then continue; fi # since then
  rm -f $lacks
  touch $begun
  # The pod's size decides: a quarter of its MEMORY (MiB, its limit) for pages, and half of it is likely to be in some cache
  postgres -c config_file="$settings/$name.conf" -c hba_file=$settings/pg_hba.conf \
    -c shared_buffers="$((MEMORY / 4))MB" -c effective_cache_size="$((MEMORY / 2))MB" &
  server=$! code=0 said=''
  echo $server > $running
  rm -f $waits
  while kill -0 $server 2>/dev/null; do
    wait $server && code=0 || code=$? # a signal ends the wait, too
  done
  server=''
  rm -f $running
  [ ! "$stopping" ] || exit 0
  if [ ! -e $held ] && [ ! -e $order ]; then exit $code; fi
done
