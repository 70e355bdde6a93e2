"""The Kubernetes objects that depend on the topology, rendered around ``cluster/manifests``. Pure, but for `write`.

A region is a namespace. In it every server of the world has a Service under its own name, the same in each region: for
the region's own servers it leads to their pods, for those of other regions to the gateway (or, where the network
between the regions is real, to the other region). So every configuration names the same hosts wherever it is read.

Whoever means a region's primary, whichever server that is, dials one name more, `writable`. Where it leads changes, and
who it is stands in the ConfigMap ``state``. Both are made once, as passwords are, and no manifest is applied to them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from argparse import ArgumentParser, FileType
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Literal

from pghc.cluster.settings import (
    JVM,
    JVM_REMEMBERS,
    SERVICES,
    ZooKeeperAddresses,
    first_service,
    pg_hba,
    postgres_conf,
    service_file,
    zoo_cfg,
    zookeeper_ids,
)
from pghc.errors import BadInput, PghcError
from pghc.topology import Address, Node, Region, Topology, load, parse

Overlay = Literal["kind", "cloud"]
Json = dict[str, Any]

CONTROL_PORT = 9000
#: The ConfigMap that says who is the region's primary and, while the cluster is made, that it is new. Each server reads
#: it before it starts.
STATE = "state"
POD_NAME = "statefulset.kubernetes.io/pod-name"
#: Where a kind node keeps the volumes of its region's pods, a directory each.
VOLUMES = "/var/lib/pghc"
REGION_LABEL = "topology.kubernetes.io/region"
PART_OF = {"app.kubernetes.io/part-of": "pghc"}

#: Kubernetes gives node ports from 30000 on. Ours are all fixed, so none is ever given to another Service.
FIRST_NODE_PORT = 30000
FIRST_GATEWAY_PORT = 10000

#: An image that is the same wherever and whenever it is pulled.
PINNED = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Images:
    """The images of the three kinds of pod, as ``name:tag``."""

    postgres: str
    zookeeper: str
    pghc: str


def client_port(node: Node) -> int:
    return SERVICES[node.role][first_service(node.role)]


def node_port(topology: Topology, viewer: str, node: Node, port: int = 0) -> int:
    """The port on every Kubernetes node that leads to the ``port``-th port of ``node`` as region ``viewer`` sees it."""
    place = topology.names.index(viewer) * len(topology.nodes) + topology.nodes.index(node)
    return FIRST_NODE_PORT + place * 3 + port


def control_node_port(topology: Topology, region: str) -> int:
    """The node port of a region's gateway's control port: after all servers'."""
    return FIRST_NODE_PORT + len(topology.names) * len(topology.nodes) * 3 + topology.names.index(region)


def gateway_ports(topology: Topology, region: str) -> Iterator[tuple[Node, int, int]]:
    """Each port of each server of the other regions, and the port on which the gateway of ``region`` stands for it."""
    for place, node in enumerate(topology.nodes):
        if node.region != region:
            for number, port in enumerate(SERVICES[node.role].values()):
                yield node, port, FIRST_GATEWAY_PORT + place * 10 + number


def writable(region: str) -> str:
    """The Service of a region's primary of now."""
    return f"{region}-rw"


def writable_gateway_port(topology: Topology, region: str) -> int:
    """The port on which the other regions' gateways stand for the primary of ``region``: after all servers'."""
    return FIRST_GATEWAY_PORT + 10 * (len(topology.nodes) + topology.names.index(region))


def pod(node: Node) -> str:
    """The name of the StatefulSet pod that is ``node``, unique in its namespace."""
    return node.name.removeprefix(f"{node.region}-") if node.role == "replica" else f"{node.role}-0"


def kind_config(topology: Topology, name: str, free: Iterator[int]) -> Json:
    """A worker a region, and a control plane whose node ports become ``free`` ports on loopback."""
    ports = [node_port(topology, viewer, node) for viewer in topology.names for node in topology.nodes]
    ports += [control_node_port(topology, region) for region in topology.names]
    mappings = [{"containerPort": port, "hostPort": next(free), "listenAddress": "127.0.0.1"} for port in ports]
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        # A machine may forbid what Kubernetes does to oom scores; then containers would not start
        "containerdConfigPatches": ['[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true\n'],
        "nodes": [
            {"role": "control-plane", "extraPortMappings": mappings},
            *({"role": "worker", "labels": {REGION_LABEL: region}} for region in topology.names),
        ],
    }


def volumes(topology: Topology) -> list[Json]:
    """A volume for each pod with data, on its region's node: at once there, with no pod started to make it."""

    def volume(node: Node) -> Json:
        on = {"key": REGION_LABEL, "operator": "In", "values": [node.region]}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{node.region}-{pod(node)}", "labels": PART_OF | {REGION_LABEL: node.region}},
            "spec": {
                "storageClassName": "local",
                "capacity": {"storage": "2Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": node.region, "name": f"data-{pod(node)}"},
                "local": {"path": f"{VOLUMES}/{pod(node)}"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on]}]}},
            },
        }

    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "local", "labels": PART_OF},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        *(volume(node) for node in topology.nodes if node.role != "api"),
    ]


def services(topology: Topology, region: str, overlay: Overlay) -> list[Json]:
    """Every server of the world under its own name, in the namespace of ``region``."""
    gateway = {(node.name, port): listens for node, port, listens in gateway_ports(topology, region)}
    behind_gateway = {"app.kubernetes.io/component": "gateway"}

    def service(node: Node) -> Json:
        own = node.region == region
        spec: Json
        if overlay == "cloud" and not own:
            spec = _elsewhere(node.name, node.region)
        else:
            ports: list[Json] = [
                {"name": name, "port": port, "targetPort": name if own else gateway[node.name, port]}
                for name, port in SERVICES[node.role].items()
            ]
            spec = {"selector": _selector(node) if own else behind_gateway, "ports": ports}
            if own and node.role != "api":
                # One name, one server: whoever dials it shall learn from itself how it is, and at once when it is back.
                # And ZooKeeper's peers must reach it before there is a quorum
                spec["publishNotReadyAddresses"] = True
            if overlay == "kind":
                spec["type"] = "NodePort"
                for number, entry in enumerate(ports):
                    entry["nodePort"] = node_port(topology, region, node, number)
        return _service(node.name, node.role, node.region) | {"spec": spec}

    def primary_of(other: str) -> Json:
        """For the region's own see `state`."""
        port = SERVICES["primary"]["postgres"]
        ports = [{"name": "postgres", "port": port, "targetPort": writable_gateway_port(topology, other)}]
        kind = {"selector": behind_gateway, "ports": ports}
        spec = kind if overlay == "kind" else _elsewhere(writable(other), other)
        return _service(writable(other), "primary", other) | {"spec": spec}

    gateway_labels = {"app.kubernetes.io/name": "gateway", "app.kubernetes.io/component": "gateway"}
    control: Json = {"name": "control", "port": CONTROL_PORT, "targetPort": "control"}
    control["nodePort"] = control_node_port(topology, region)
    spec = {"type": "NodePort", "selector": behind_gateway, "ports": [control]}
    own_gateway = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gateway", "labels": gateway_labels}}
    return [
        *(service(node) for node in topology.nodes),
        *(primary_of(other) for other in topology.names if other != region),
        *([own_gateway | {"spec": spec}] if overlay == "kind" else []),
    ]


def _service(name: str, role: str, region: str) -> Json:
    labels = {"app.kubernetes.io/name": "server", "app.kubernetes.io/component": role, REGION_LABEL: region}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}}


def _elsewhere(name: str, region: str) -> Json:
    return {"type": "ExternalName", "externalName": f"{name}.{region}.svc.cluster.local"}


def _selector(node: Node) -> Json:
    if node.role == "replica":
        return {POD_NAME: pod(node)}
    return {"app.kubernetes.io/component": node.role}


def state(topology: Topology, region: str, *, new: bool) -> list[Json]:
    """Who is the region's primary, at first: for its servers, and for whoever dials it."""
    first = topology.region(region).primary
    labels = PART_OF | {REGION_LABEL: region}
    config: Json = {"apiVersion": "v1", "kind": "ConfigMap"}
    config["metadata"] = {"name": STATE, "namespace": region, "labels": labels}
    service = _service(writable(region), "primary", region)
    service["metadata"] |= {"namespace": region, "labels": service["metadata"]["labels"] | labels}
    spec = {
        "selector": {POD_NAME: pod(topology.node(first))},
        "ports": [{"name": "postgres", "port": SERVICES["primary"]["postgres"], "targetPort": "postgres"}],
        "publishNotReadyAddresses": True,  # as for servers under their own names
    }
    return [config | {"data": {"primary": first} | ({"new": "yes"} if new else {})}, service | {"spec": spec}]


def settings(topology: Topology, region: str) -> dict[str, dict[str, str]]:
    """The region's ConfigMaps: name to files. In a pod, a server's name is its address."""
    here = topology.region(region)
    zookeepers = {
        other.name: ZooKeeperAddresses(
            Address(other.zookeeper, 2888),
            Address(other.zookeeper, 3888),
            Address("0.0.0.0", 2181),  # noqa: S104  its pod's
        )
        for other in topology.regions
    }
    servers = [node for node in here.nodes if node.role in ("primary", "replica")]
    primaries = {other.primary: Address(writable(other.name), 5432) for other in topology.regions}

    def conf(node: Node) -> str:
        """With where a replica reads: any of them may be one, and the primary does not look at it."""
        return postgres_conf(replace(node, role="replica"), topology, version=18, listen="*", durable=True)

    return {
        "topology": {"topology.json": json.dumps(topology.to_dict(), indent=2)},
        "postgres": {
            **{f"{node.name}.conf": conf(node) for node in servers},
            "pg_hba.conf": pg_hba("all"),
            "pg_service.conf": service_file(primaries),
        },
        "zookeeper": {
            # A peer's address is a Service's, not the pod's own: listen on all there are
            "zoo.cfg": zoo_cfg(topology, "/var/lib/pghc/data", zookeepers) + "quorumListenOnAllIPs=true\n",
            "java.options": "\n".join((*JVM, *JVM_REMEMBERS)) + "\n",
        },
    }


def region_files(
    topology: Topology, region: Region, overlay: Overlay, images: Images, manifests: str
) -> dict[str, str]:
    """The files of one region's kustomization; ``manifests`` is the path of ``cluster/manifests`` from there."""
    maps = settings(topology, region.name)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": region.name,
            "labels": PART_OF | {REGION_LABEL: region.name, "pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    pinned = {"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {REGION_LABEL: region.name}}
    # A Job cannot be changed; with another image it is another one
    job = f"setup-{sha256(images.pghc.encode()).hexdigest()[:10]}"
    setup = {"op": "replace", "path": "/metadata/name", "value": job}
    replicas = {"op": "replace", "path": "/spec/replicas", "value": region.replicas}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": region.name,
        "resources": [f"{manifests}/base", "namespace.json", "services.json"],
        "components": [f"{manifests}/overlays/{overlay}", f"{manifests}/security"],
        "configMapGenerator": [
            # What the setup Job reads keeps its name: a Job cannot be changed, and a cluster's topology never is
            {
                "name": "region",
                "literals": [f"REGION={region.name}", f"ZOOKEEPER_ID={zookeeper_ids(topology)[region.name]}"],
                "options": {"disableNameSuffixHash": True},
            },
            *(
                {"name": name, "files": [f"{name}/{file}" for file in content]}
                | ({"options": {"disableNameSuffixHash": True}} if name == "topology" else {})
                for name, content in maps.items()
            ),
        ],
        "labels": [{"pairs": PART_OF, "includeTemplates": True}],
        "images": [
            _image("pghc/postgres", images.postgres),
            _image("pghc/zookeeper", images.zookeeper),
            _image("pghc/pghc", images.pghc),
        ],
        "patches": [
            {"target": {"kind": "StatefulSet|Deployment|Job"}, "patch": json.dumps([pinned])},
            {"target": {"kind": "StatefulSet", "name": "replica"}, "patch": json.dumps([replicas])},
            {"target": {"kind": "Job", "name": "setup"}, "patch": json.dumps([setup])},
        ],
    }
    return {
        "kustomization.yaml": json.dumps(kustomization, indent=2),
        "namespace.json": json.dumps(namespace, indent=2),
        "services.json": _list(services(topology, region.name, overlay)),
        **{f"{name}/{file}": text for name, content in maps.items() for file, text in content.items()},
    }


def _list(items: list[Json]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2)


def _image(name: str, image: str) -> Json:
    new, digest = image.split("@", 1) if "@" in image else (image, "")
    if digest:
        return {"name": name, "newName": new, "digest": digest}
    new, tag = image.rsplit(":", 1)
    return {"name": name, "newName": new, "newTag": tag}


def write(topology: Topology, overlay: Overlay, images: Images, manifests: Path, target: Path) -> None:
    """Write a kustomization for ``kubectl apply -k`` in the place of ``target``: a directory a region.

    Raises `BadInput` when an image that nodes will pull is not pinned.
    """
    if overlay == "cloud" and (loose := [each for each in vars(images).values() if not PINNED.fullmatch(each)]):
        raise BadInput(
            f"{', '.join(loose)}: a tag can come to mean another image, and each node pulls when it likes",
            "Name each as REGISTRY/NAME@sha256:..., as `docker push` prints it.",
        )
    shutil.rmtree(target, ignore_errors=True)
    for region in topology.regions:
        directory = target / region.name
        relative = os.path.relpath(manifests.resolve(), directory.resolve())
        for path, text in region_files(topology, region, overlay, images, relative).items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    resources = list(topology.names)
    if overlay == "kind":
        resources.append("volumes.json")
        (target / "volumes.json").write_text(_list(volumes(topology)))
    (target / "kustomization.yaml").write_text(json.dumps({"resources": resources}))


def secret(region: str, values: Mapping[str, str]) -> Json:
    """The region's passwords as a Secret, for standard input of ``kubectl create``. Kubernetes refuses to change it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "pghc", "namespace": region, "labels": PART_OF},
        "immutable": True,
        "stringData": dict(values),
    }


def missing_states(topology: Topology, existing: Sequence[Json], *, new: bool) -> list[Json]:
    """The `state` objects that are not among ``existing`` (as Kubernetes returns them).

    ``new``: no server has been made. What has begun as new is so for the regions, too, that are still to be begun.
    """
    have = {
        (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]): each.get("data", {})
        for each in existing
    }
    known = [data for (kind, _, name), data in have.items() if kind == "ConfigMap" and name == STATE]
    if known:
        new = any("new" in data for data in known)
    wanted = [each for region in topology.names for each in state(topology, region, new=new)]
    return [
        each for each in wanted
        if (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]) not in have
    ]


def missing_secrets(topology: Topology, existing: Sequence[Json]) -> list[Json]:
    """Secrets for the regions that have none among ``existing`` (as Kubernetes returns them), with the others' words.

    The first time with new ones. Raises `BadInput` when regions have different passwords: no server could tell which.
    """
    have = {
        each["metadata"]["namespace"]: {key: b64decode(value).decode() for key, value in each["data"].items()}
        for each in existing
        if each["kind"] == "Secret" and each["metadata"]["name"] == "pghc"
        and each["metadata"]["namespace"] in topology.names
    }
    words = list(have.values()) or [new_passwords()]
    if any(other != words[0] for other in words):
        raise BadInput(f"the Secrets pghc of {', '.join(have)} differ", "Delete those that no server was made with.")
    return [secret(region, words[0]) for region in topology.names if region not in have]


def cut(topology: Topology, regions: int | None, replicas: int | None) -> Topology:
    """The first so many regions of a topology, with so many replicas each. Raises `BadInput`."""
    count = len(topology.regions) if regions is None else regions
    if count > len(topology.regions):
        raise BadInput(
            f"the topology lists {len(topology.regions)} regions, not {count}",
            "List more in a file like pghc/topology.toml, with their delays, and give it as --topology.",
        )
    kept = tuple(
        region if replicas is None else replace(region, replicas=replicas) for region in topology.regions[:count]
    )
    names = {region.name for region in kept}
    delays = {pair: delay for pair, delay in topology.delays_ms.items() if set(pair) <= names}
    return parse(Topology(kept, delays).to_dict(), "the topology asked for")


def new_passwords() -> dict[str, str]:
    """What a Secret holds, newly generated."""
    names = ("admin-password", "password", "replicator-password", "zookeeper-password", "api-token", "gateway-token")
    return {name: token_urlsafe(24) for name in names}


def main() -> None:
    """What ``cluster/up.sh`` asks for, on standard output; each but ``topology`` reads one, as JSON, from FILE."""
    parser = ArgumentParser(prog="python -m pghc.cluster.kubernetes.manifests", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("topology", help="the topology asked for, as JSON")
    command.add_argument("--file")
    command.add_argument("--regions", type=int)
    command.add_argument("--replicas", type=int)
    for name, what in (
        ("config", "kind's configuration"),
        ("once", "what is made once: Secrets with new passwords, who is the primary"),
        ("names", "the regions"),
        ("write", "a kustomization, as files"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("topology", metavar="FILE", type=Path)
        if name == "config":
            command.add_argument("--name", required=True)
        if name == "once":
            existing = "JSON of `kubectl get secrets,configmaps,services -A -o json`: only what is missing there"
            command.add_argument("--existing", type=FileType(), metavar="FILE", help=existing)
            command.add_argument("--new", action="store_true", help="no server has been made yet")
        if name == "write":
            command.add_argument("--overlay", choices=("kind", "cloud"), default="kind")
            command.add_argument("--images", nargs=3, required=True, metavar=("POSTGRES", "ZOOKEEPER", "PGHC"))
            command.add_argument("--manifests", type=Path, required=True)
            command.add_argument("target", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "topology":
            sys.stdout.write(json.dumps(cut(load(given.file), given.regions, given.replicas).to_dict()) + "\n")
            return
        topology = parse(json.loads(given.topology.read_text()), str(given.topology))
        match given.command:
            case "config":
                from pghc.cluster.local.deployment import PORTS as LOCAL
                from pghc.cluster.local.deployment import is_free

                free = filter(is_free, random.sample(LOCAL, len(LOCAL)))
                sys.stdout.write(json.dumps(kind_config(topology, given.name, free), indent=2))
            case "names":
                sys.stdout.write("\n".join(topology.names) + "\n")
            case "once":
                existing = json.load(given.existing)["items"] if given.existing else []
                missing = missing_secrets(topology, existing) + missing_states(topology, existing, new=given.new)
                if missing:
                    sys.stdout.write(_list(missing))
            case "write":
                write(topology, given.overlay, Images(*given.images), given.manifests, given.target)
    except PghcError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
