"""What readers do to a lesson, other than running it from top to bottom, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from pghc.cluster.local.embedded import Embedded

FIRST_CELL = "from pghc import Lab\nlab = Lab.attach()\nlab.begin_chain()"
AMID_A_FAULT = """
import time
with lab.faults.partition('us-east', 'eu-west'), lab.faults.kill('ap-south-replica-1'):
    time.sleep(60)
"""


class Kernel:
    """A notebook's kernel, by hand."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def begin(self, code: str) -> str:
        message: str = self.client.execute(code)
        return message

    def end(self, message: str) -> str:
        """What the cell showed: its last line of text, or its error."""
        shown = ""
        while True:
            heard: dict[str, Any] = self.client.get_iopub_msg(timeout=90)
            if heard["parent_header"].get("msg_id") != message:
                continue
            kind, content = heard["msg_type"], heard["content"]
            if kind == "error":
                shown = f"{content['ename']}: {''.join(content['traceback'])}"
            elif kind in ("execute_result", "display_data", "update_display_data"):
                shown = content["data"]["text/plain"]
            elif kind == "stream":
                shown = content["text"]
            elif kind == "status" and content["execution_state"] == "idle":
                return shown

    def run(self, code: str) -> str:
        return self.end(self.begin(code))

    def interrupt(self, message: str, after: float) -> str:
        time.sleep(after)
        self.manager.interrupt_kernel()
        return self.end(message)

    def children(self) -> list[str]:
        pid = self.manager.provisioner.process.pid
        return [" ".join(each.cmdline()) for each in psutil.Process(pid).children(recursive=True)]

    def close(self, *, killed: bool = False) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=killed)


@pytest.fixture
def kernels(cluster: Embedded, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    """Kernels that find the cluster, the first of them after the first cell; all ended afterwards."""
    monkeypatch.setenv("PGHC_BACKEND", "embedded")
    monkeypatch.setenv("PGHC_DIR", str(cluster.directory))
    opened = [Kernel()]
    try:
        assert "Error" not in opened[0].run(FIRST_CELL)
        yield opened
    finally:
        for kernel in opened:
            kernel.close()


def test_an_interrupted_run_leaves_no_client_behind_and_the_next_cell_works(kernels: list[Kernel]) -> None:
    kernel = kernels[0]
    running = kernel.begin("run = lab.run('causal', clients=2, seconds=60)")
    deadline = time.monotonic() + 20
    while not any("pghc" in each for each in kernel.children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any("pghc" in each for each in kernel.children())
    assert kernel.interrupt(running, after=2).startswith("KeyboardInterrupt")
    assert not [each for each in kernel.children() if "pghc" in each]
    assert kernel.run("lab.append('us-east'); lab.settle(); lab.verify().valid") == "True"


def test_an_interrupted_fault_is_healed(kernels: list[Kernel], cluster: Embedded) -> None:
    running = kernels[0].begin(AMID_A_FAULT)
    assert kernels[0].interrupt(running, after=2).startswith("KeyboardInterrupt")
    assert cluster.status().healthy
    assert {link.state for link in cluster.links()} == {"open"}


def test_a_kernel_that_is_restarted_amid_a_fault_finds_a_whole_cluster_after_its_first_cell(
    kernels: list[Kernel], cluster: Embedded
) -> None:
    kernels[0].begin(AMID_A_FAULT)
    deadline = time.monotonic() + 20
    while cluster.status().healthy and time.monotonic() < deadline:
        time.sleep(0.1)
    kernels.pop().close(killed=True)
    assert not cluster.status().healthy
    kernels.append(Kernel())
    assert "Error" not in kernels[0].run(FIRST_CELL)
    assert cluster.status().healthy
    assert {link.state for link in cluster.links()} == {"open"}
    assert "zk_id=1" in kernels[0].run("lab.append('eu-west')")


def test_without_its_cluster_a_lesson_says_what_to_do_and_its_first_cell_does_it(
    kernels: list[Kernel], cluster: Embedded
) -> None:
    cluster.down()
    for cell in ("lab.append('us-east')", "lab.run('causal', seconds=1)", "lab.chain('us-east')", "lab.verify()"):
        said = kernels[0].run(cell)
        assert "no cluster runs" in said
        assert "run the first cell again" in said
        assert "Traceback" not in said
    assert "Error" not in kernels[0].run(FIRST_CELL)
    assert "zk_id=1" in kernels[0].run("lab.append('us-east')")
    kernels.pop().close()  # it started the cluster, so it takes the cluster along
    cluster.down()
    cluster.up()


def test_cells_run_twice_and_a_first_cell_in_the_middle_begin_anew(kernels: list[Kernel]) -> None:
    for _ in range(2):
        assert kernels[0].run("run = lab.run('naive', clients=1, seconds=1); run.verdict.valid") == "False"
    assert "Error" not in kernels[0].run(FIRST_CELL)  # the mesh was stuck
    assert kernels[0].run("lab.append('ap-south'); lab.settle(); lab.verify().valid") == "True"
