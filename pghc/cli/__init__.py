"""What people type."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Its modules take a moment to load, and Ctrl-C counts from the first."""
    from pghc.cli import interrupts

    interrupts.install()
    from pghc.cli import commands

    commands.main()
