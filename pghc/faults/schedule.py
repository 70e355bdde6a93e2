"""Which faults a run meets, from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pghc.topology import Topology

#: Kind of fault and how often it is drawn. The last three are done to clients, the others to servers and links.
KINDS = {
    "kill": 4,
    "pause": 3,
    "partition": 2,
    "cut": 3,
    "slow": 2,
    "reset": 1,
    "lose": 1,
    "kill-clients": 3,
    "lose-replies": 4,
    "pause-clients": 2,
}
#: A server is lost with its data, and replaced: one at a time, and nothing else happens to its region's databases until
#: so many seconds after it is to be replaced.
LOSE, REPLACED = "lose", 8.0
#: In one run of so many, another program begins a chain under it; amid other faults that takes up to so many seconds,
#: and what was written before is not judged.
BEGIN, BEGUN, BEGINNING = "begin-chain", 4, 10.0
#: Seconds that a fault lasts. Most are short; one in `RARE` may last beyond sessions, retries and time-outs.
SHORTEST, USUAL, LONGEST, RARE = 0.3, 2.5, 8.0, 4
#: One in so many outages takes a second server along, anywhere.
DOUBLE = 4
#: Seconds without any fault at the end of a run, so that it shows whether everything comes back by itself.
QUIET = 3.0


@dataclass(frozen=True)
class Event:
    """One fault: it begins ``at`` seconds after the clients do and is healed after ``seconds``."""

    at: float
    seconds: float
    kind: str
    targets: tuple[str, ...]
    amount: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        targets = (self.targets[0], "once", self.targets[1]) if self.kind == "kill-clients" else self.targets
        return f"{self.at:5.1f} s  {' '.join((self.kind, *targets))}{lasting}"


def schedule(
    seed: int, topology: Topology, seconds: float, steps: Sequence[str], *, leave_out: Sequence[str] = ()
) -> list[Event]:
    """The faults of a run of ``seconds`` seconds, by beginning; one server is never hit twice at the same time.

    ``steps``: the steps of the writer after which clients may be killed. ``leave_out``: kinds that are not drawn.
    """
    dice = random.Random(seed)  # noqa: S311  # repeatable on purpose
    kinds = {kind: weight for kind, weight in KINDS.items() if kind not in leave_out}
    outages = [name for region in topology.regions for name in (region.primary, region.zookeeper)]
    events: list[Event] = []
    busy: dict[str, float] = {}
    now = dice.uniform(0.5, 1.5)
    while now < seconds - QUIET - SHORTEST:
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        longest = LONGEST if dice.randrange(RARE) == 0 else USUAL
        length = dice.uniform(SHORTEST, min(longest, seconds - QUIET - now))
        regions = tuple(dice.sample(topology.names, 2))
        region = topology.region(regions[0])
        amount = 0.0
        targets: tuple[str, ...] = (region.name,)
        taken = targets
        if kind in ("kill", "pause"):
            servers = [region.primary, region.zookeeper, *region.replica_names[: kind == "kill"]]
            targets = (dice.choice(servers),)
            if dice.randrange(DOUBLE) == 0:
                targets += (dice.choice([name for name in outages if name not in targets]),)
            taken = targets
        elif kind == LOSE:
            targets = (dice.choice((region.primary, *region.replica_names[:1], region.zookeeper)),)
            taken = (*region.databases, region.zookeeper, LOSE)
        elif kind == "kill-clients":
            targets, length = (region.name, dice.choice(list(steps))), 0.0
        elif kind == "lose-replies":
            length = 0.0
        elif kind != "pause-clients":
            targets, taken = regions, ("links",)
            amount = topology.delay_ms(*regions) * dice.choice((3, 6)) if kind == "slow" else 0.0
        if all(busy.get(name, 0.0) <= now for name in taken):
            busy |= dict.fromkeys(taken, now + length + (REPLACED if kind == LOSE else 0.5))
            events.append(Event(round(now, 2), round(length, 2), kind, targets, round(amount, 1)))
        now += dice.uniform(0.2, 2.0)
    if BEGIN not in leave_out and dice.randrange(BEGUN) == 0 and seconds > 2 * QUIET:
        latest = max(min(seconds / 2, seconds - BEGINNING), 1.0)
        events.append(Event(round(dice.uniform(1.0, latest), 2), 0.0, BEGIN, ()))
    return sorted(events, key=lambda event: event.at)
