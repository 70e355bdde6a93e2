#!/bin/bash
# The pod network of nodes on one bridge: a route to every other node's pod range, the CNI's configuration for this node.
# Stands in for kindnetd, which no package registry carries; it enforces no NetworkPolicy.
set -u
account=/var/run/secrets/kubernetes.io/serviceaccount
nodes=https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/nodes

masquerade=(POSTROUTING -s "$POD_SUBNET" ! -d "$POD_SUBNET" -j MASQUERADE)
iptables -w -t nat -C "${masquerade[@]}" 2>/dev/null || iptables -w -t nat -A "${masquerade[@]}"

configure() { # configure RANGE
  cat > /etc/cni/net.d/.new <<JSON
{"cniVersion": "0.3.1", "name": "kindnet", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
   "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$1"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  mv /etc/cni/net.d/.new /etc/cni/net.d/10-kindnet.conflist
}

# A watch begins with all nodes as they are; it ends after a while, or when the API server goes away, and begins anew
while :; do
  curl --silent --no-buffer --max-time 300 --cacert $account/ca.crt \
    --header @<(printf 'Authorization: Bearer %s' "$(cat $account/token)") "$nodes?watch=1" |
    jq --unbuffered -r '.object | select(.spec.podCIDR) |
      [.metadata.name, .spec.podCIDR, (.status.addresses[]? | select(.type == "InternalIP") | .address)] | @tsv' |
    while read -r name range address _; do
      if [ "$name" = "$NODE_NAME" ]; then
        [ -f /etc/cni/net.d/10-kindnet.conflist ] || configure "$range"
      elif [ "$address" ]; then
        ip route replace "$range" via "$address"
      fi
    done
  sleep 1
done
