"""What an API node measures, for Prometheus."""

from __future__ import annotations

import threading
import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from pghc.errors import PghcError
from pghc.store import Cursor

disable_created_metrics()  # type: ignore[no-untyped-call]
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
#: Seconds: from a local read to a time-out.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """One node's, in a registry of its own, so that a program may hold several nodes."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("pghc_requests", "Answers given", ["method", "route", "status"], registry=registry)
        self.open_requests = Gauge("pghc_open_requests", "Requests that wait for their answer", registry=registry)
        appends = Counter(
            "pghc_appends",
            "Appends: ok (a new entry), known (the entry of an earlier request with this key), definite and indefinite "
            "errors",
            ["outcome"],
            registry=registry,
        )
        self.appends = {name: appends.labels(name) for name in ("ok", "known", "definite", "indefinite")}
        self.append_seconds = Histogram(
            "pghc_append_seconds", "Duration of acknowledged appends", buckets=BUCKETS, registry=registry
        )
        self.wait_seconds = Histogram(
            "pghc_predecessor_wait_seconds",
            "Time from an append's number, or lock, until all entries before it were in this region",
            buckets=BUCKETS,
            registry=registry,
        )
        self.writer_open = Gauge("pghc_writer_open", "1 when the writer has its ZooKeeper session", registry=registry)
        self._up = Gauge("pghc_server_up", "1 when the server answered last time", ["node"], registry=registry)
        self._position = Gauge(
            "pghc_log_position", "Log position up to which this server has everything", ["node"], registry=registry
        )
        self._watermark = Gauge(
            "pghc_watermark", "Entry up to which this server has every entry", ["node"], registry=registry
        )
        self._lag = Gauge(
            "pghc_replication_lag_entries",
            "Entries that the region's primary has and this replica has not",
            ["node"],
            registry=registry,
        )
        self._numbered = threading.local()

    def step(self, name: str) -> None:
        """The writer's `Step`: called on the thread of the append, after each of its steps."""
        if name in ("numbered", "locked"):
            self._numbered.at = time.monotonic()
        elif name == "waited" and (since := self._numbered.__dict__.pop("at", None)):
            self.wait_seconds.observe(time.monotonic() - since)

    def appended(self, seconds: float, *, known: bool) -> None:
        self.appends["known" if known else "ok"].inc()
        self.append_seconds.observe(seconds)

    def failed(self, error: PghcError) -> None:
        self.appends["definite" if error.definite else "indefinite"].inc()

    def observed(self, node: str, cursor: Cursor | None, primary: Cursor | None) -> None:
        """A server of the region has come as far as ``cursor``; None: it does not answer."""
        self._up.labels(node).set(cursor is not None)
        if cursor:
            self._position.labels(node).set(cursor.position)
            self._watermark.labels(node).set(cursor.zk_id)
            if primary and primary is not cursor:
                self._lag.labels(node).set(max(primary.zk_id - cursor.zk_id, 0))

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
