"""PGHC: a laboratory for consensus, total-order broadcast and causality on real servers.

What a lesson needs can be imported from here: ``from pghc import Lab, predict, link``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Where each public name is. A module is loaded when a name of it is asked for, so the command line neither waits for
#: nor has the notebooks' packages.
_NAMES = {
    "pghc.chain": ["ROOT", "Row", "extend", "link"],
    "pghc.errors": ["Conflict", "Indefinite", "Unavailable"],
    "pghc.lab": ["exercises"],
    "pghc.lab.board": ["Board", "watch_chain"],
    "pghc.lab.lab": ["Lab"],
    "pghc.lab.lessons": [
        *("SequencedWriter", "judge", "judge_pages", "predict", "show_source", "skip_what_waits", "time_steps")
    ],
    "pghc.lab.losses": ["OpenTransaction", "replicas_away"],
    "pghc.lab.plots": [
        *("FIBRE_KM_PER_MS", "causes", "floor_ms", "happens_before", "inversions", "kilometres", "spacetime")
    ],
    "pghc.lab.timeline": ["Lag"],
    "pghc.sequencer": ["Entry", "Sequencer"],
    "pghc.store": ["Reader"],
    "pghc.verify.hashchain": ["verify_chain"],
    "pghc.workload.latency": ["take_numbers"],
    "pghc.writers": ["open_writer"],
    "pghc.writers.causal": ["Causal"],
    "pghc.writers.numbered": ["Numbered"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pghc' has no attribute {name!r}")
    module = import_module(_MODULE_OF[name])
    return getattr(module, name) if hasattr(module, name) else import_module(f"{module.__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(_MODULE_OF)
