"""PGHC: a laboratory for consensus, total-order broadcast and causality on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pghc.lab import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:  # so that the command line need not wait for, or have, the notebooks' packages
    if name == "Lab":
        from pghc.lab import Lab

        return Lab
    raise AttributeError(f"module 'pghc' has no attribute {name!r}")
