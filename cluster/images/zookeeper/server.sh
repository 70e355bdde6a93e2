#!/bin/bash
# One ZooKeeper server. Its id, which is its place in zoo.cfg, is part of what is on the volume.
set -euo pipefail
mkdir -p /var/lib/pghc/data
echo "$ZOOKEEPER_ID" > /var/lib/pghc/data/myid
while [ -e /tmp/held ]; do sleep 0.1; done # killed by a fault that has not ended yet
# The last word on the heap: half of the pod's MEMORY (MiB, its limit); all of the ensemble's tree is in it
exec /usr/lib/java/bin/java @/etc/pghc/java.options "-Xmx$((MEMORY / 2))m" -cp '/usr/lib/zookeeper/*' \
  org.apache.zookeeper.server.quorum.QuorumPeerMain /etc/pghc/zoo.cfg
