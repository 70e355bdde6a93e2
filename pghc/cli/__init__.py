"""What people type."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Its modules take a moment to load, and Ctrl-C is heard from the first."""
    from pghc.cli import interrupts

    interrupts.install()
    try:
        with interrupts.held():  # an exception amid an import may become another one
            from pghc.cli import commands
        commands.main()
    except KeyboardInterrupt:  # before anything was begun, or after everything has ended
        sys.stderr.write(f"{interrupts.farewell()}\n")
        sys.exit(interrupts.code)
