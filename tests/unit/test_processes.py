"""Child processes of the embedded backend."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import psutil

from pghc.cluster.local.processes import Command, Processes, kill

#: A process whose child takes its time to end: it has much memory to give back.
FAMILY = """
import os, time
child = os.fork()
if child == 0:
    held = bytearray(os.urandom(1 << 20)) * 300
    print("ready", flush=True)
time.sleep(60)
"""


def test_who_is_killed_is_gone_with_all_its_children(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        command = Command([sys.executable, "-c", FAMILY], tmp_path, {})
        process = Processes().start(command, tmp_path / "log")
        deadline = time.monotonic() + 20
        while "ready" not in process.written():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        assert len(family) == 2
        await kill(process)
        return [each.status() for each in family if each.is_running()]

    assert set(asyncio.run(scenario())) <= {psutil.STATUS_ZOMBIE}
