"""The chain behind HTTP: one region's API node, which clients of that region talk to.

    POST /chain            append one entry; no body         Idempotency-Key: the same key, the same entry
    GET  /chain/recent     the newest entries, newest first  ?limit=10&after=ZK_ID
    GET  /chain/verify     recompute the last entries        ?last=1000
    GET  /cluster/config   regions and nodes
    GET  /ping             pong
    GET  /metrics, /health/live, /health/ready, /openapi.json
    GET  /, /docs          for people

An answer carries ``PGHC-Position``; a read that sends it back is served nothing older, by whatever server. Errors are
problem documents (RFC 9457) whose ``outcome`` says whether a write is known not to have happened by this request
(definite) or may have (indefinite): then retry under the same key.

Without a token the node listens on loopback only. Pages of other origins get no answer unless they are allowed.
"""

from pghc.api.app import create
from pghc.api.process import serve
from pghc.api.settings import Settings, read_token

__all__ = ["Settings", "create", "read_token", "serve"]
