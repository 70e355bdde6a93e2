#!/bin/bash
# One ZooKeeper server. Its id, which is its place in zoo.cfg, is part of what is on the volume.
set -euo pipefail
data=/var/lib/pghc/data
while [ -e /tmp/held ]; do sleep 0.1; done # killed by a fault that has not ended yet
mkdir -p $data
echo "$ZOOKEEPER_ID" > $data/myid
# Only a new cluster's server remembers nothing and may vote; another whose data is gone takes all from a leader before it does
if [ -s /run/state/new ] && [ ! -e /tmp/begun ] && ! compgen -G "$data/version-2/*.*" >/dev/null; then touch $data/initialize; fi
touch /tmp/begun
# The last word on the heap: half of the pod's MEMORY (MiB, its limit); all of the ensemble's tree is in it
exec /usr/lib/java/bin/java @/etc/pghc/java.options "-Xmx$((MEMORY / 2))m" -cp '/usr/lib/zookeeper/*' \
  org.apache.zookeeper.server.quorum.QuorumPeerMain /etc/pghc/zoo.cfg
