#!/bin/bash
# One Postgres server of $REGION: `server.sh primary` makes its data on the first start, `server.sh replica` clones its
# primary's. Settings are in /etc/pghc, passwords in /run/secrets/pghc; none is on a command line.
set -euo pipefail
settings=/etc/pghc secrets=/run/secrets/pghc
say() { echo "server.sh: $*"; }

make_primary() {
  name=$REGION-primary
  [ -f "$PGDATA/PG_VERSION" ] && return
  say "making the data of $name"
  rm -rf "$PGDATA.new" # half made by a start that was cut short
  initdb --pgdata="$PGDATA.new" --username=pghc_admin --pwfile=<(printf %s "$(cat $secrets/admin-password)") \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C --wal-segsize=4 >/dev/null
  mv "$PGDATA.new" "$PGDATA"
}

# A replica goes on with its own data while the primary keeps the log that it lacks, or while the primary is away. Without
# a slot (the primary was made anew), or with one that fell too far behind, only a new clone can follow.
make_replica() {
  name=$REGION-$HOSTNAME
  local slot=${name//-/_} kept said=
  ask() { psql -XAtc "select coalesce(wal_status, 'reserved') from pg_replication_slots where slot_name = '$slot'" "service=$REGION-primary" 2>/tmp/why; }
  if [ -f "$PGDATA/PG_VERSION" ]; then
    if ! kept=$(ask) || [[ $kept =~ reserved|extended ]]; then return; fi
    say "the primary keeps no log for $name (slot $slot: ${kept:-none})"
    rm -rf "$PGDATA"
  fi
  until [[ $(ask) =~ reserved|extended ]]; do
    echo "no slot $slot yet" >> /tmp/why
    if [ "$said" != "$(head -n 1 /tmp/why)" ]; then said=$(head -n 1 /tmp/why); say "waiting for $REGION-primary: $said"; fi
    sleep 0.5
  done
  say "cloning $REGION-primary to $name"
  rm -rf "$PGDATA.new"
  pg_basebackup --pgdata="$PGDATA.new" --dbname="service=$REGION-primary" --slot="$slot" --wal-method=stream --checkpoint=fast
  touch "$PGDATA.new/standby.signal"
  mv "$PGDATA.new" "$PGDATA"
}

# How this server dials others: by the names of services, as the one role that may replicate
export PGSERVICEFILE=$settings/pg_service.conf PGPASSFILE=/tmp/pgpass
(umask 077; printf '*:*:*:replicator:%s\n' "$(cat $secrets/replicator-password)" > "$PGPASSFILE")

case $1 in
  primary) make_primary ;;
  replica) make_replica ;;
  *) say "unknown role $1"; exit 2 ;;
esac
while [ -e /tmp/held ]; do sleep 0.1; done # killed by a fault that has not ended yet
# The pod's size decides: a quarter of its MEMORY (MiB, its limit) for pages, and half of it is likely to be in some cache
exec postgres -c config_file="$settings/$name.conf" -c hba_file=$settings/pg_hba.conf \
  -c shared_buffers="$((MEMORY / 4))MB" -c effective_cache_size="$((MEMORY / 2))MB"
