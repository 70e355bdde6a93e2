"""``python -m pghc.api FILE``: a node as a backend starts it, with what it has written into FILE (mode 0600)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pghc.api import Settings, serve
from pghc.topology import View

if __name__ == "__main__":
    orders = json.loads(Path(sys.argv[1]).read_text())
    serve(View.from_dict(orders["view"]), Settings.from_environment(host=orders["host"], port=orders["port"]))
