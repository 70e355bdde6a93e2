"""What is left to judge of a history when a chain was begun under the run: a new chain knows nothing of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pghc.verify.history import Event, Recorder, read
from pghc.verify.merge import merge


def leave_out(part: Path, begun: Sequence[tuple[int, int]]) -> Path:
    """The history of one process without what concerns chains that have ended; a new file, or ``part`` itself.

    ``begun``: beginning and end of the beginning of each chain, in the history's time. What had its answer before is
    left out. What was under way meanwhile went to the old chain or to the new one: an append becomes indefinite, a read
    is left out. Clients that go on are others, for what they have seen is no longer there.
    """
    if not begun:
        return part
    whole = part.with_name(f"{part.name}.whole")
    merge([part], whole)  # without a last line that was cut short
    first, last = min(start for start, _ in begun), max(end for _, end in begun)
    kept: list[tuple[Event, str] | None] = []
    asked: dict[tuple[str, str, str | None], int] = {}  # where in `kept` what has no answer yet was invoked
    for event in read(whole):
        operation = (event.process, event.op, event.request_id)
        if event.type == "invoke":
            asked[operation] = len(kept)
            kept.append((event, f"{event.process}'" if event.time > last else event.process))
        elif (place := asked.pop(operation, None)) is not None and (invoked := kept[place]):
            if invoked[0].time <= last and (event.time < first or event.op == "read"):
                kept[place] = None
            else:
                meanwhile = event._replace(type="info", value=None, error="a chain was begun meanwhile")
                kept.append((event if invoked[0].time > last else meanwhile, invoked[1]))
    out = part.with_name(f"{part.name}.left")
    time = 0
    with Recorder(out, clock=lambda: time) as recorder:
        for event, process in filter(None, kept):
            time = event.time
            about = (process, event.region, event.op, event.request_id, event.node or "")
            if event.type == "invoke":
                recorder.invoke(*about, event.value)
            elif event.type == "ok":
                recorder.ok(*about, event.value)
            else:
                (recorder.fail if event.type == "fail" else recorder.info)(*about, event.error or "")
    return out
