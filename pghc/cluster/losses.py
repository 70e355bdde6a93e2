"""What is said of servers that cannot start, and the one command that brings each back: the same on both backends."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from pghc.topology import Node, Topology

#: Why a database cannot start.
GONE = "its data is gone"
FORMER = "its data is that of a former primary"


def is_database(node: Node) -> bool:
    return node.role in ("primary", "replica")


def in_its_part(node: Node, primary: str) -> Node:
    """A database with the role that it has now, where ``primary`` is its region's."""
    return replace(node, role="primary" if node.name == primary else "replica") if is_database(node) else node


def remedy(topology: Topology, node: Node, primary: str, lacking: Collection[str], backend: str = "embedded") -> str:
    """The command that replaces a server that lacks its data; its region's, while the primary is lost, too."""
    if not is_database(node) or (node.name != primary and primary not in lacking):
        command = f"rebuild {node.name}"
    else:
        left = any(name not in lacking for name in topology.region(node.region).databases)
        command = f"{'promote' if left else 'rebuild'} {node.region}"
    return f"`pghc {command}`" if backend == "embedded" else f"`pghc {command} --backend {backend}`"


def summary(remedies: Iterable[str]) -> str:
    """A sentence for a whole cluster, from those of its servers."""
    return f"{', '.join(dict.fromkeys(remedies))} brings back what is lost."
