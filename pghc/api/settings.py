"""How an API node behaves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pghc.errors import BadInput
from pghc.writers import check_name


@dataclass(frozen=True)
class Settings:
    """How a node behaves. ``token``: what clients must show; ``origins``: whose pages may call ("*": everybody's);
    ``live_page``: the address of the page that shows the regions at work, if there is one.
    """

    writer: str = "causal"
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()
    append_seconds: float = 10.0
    log_level: str = "info"
    live_page: str = ""

    def __post_init__(self) -> None:
        """Raises `BadInput`."""
        check_name(self.writer)
        if self.token and not re.fullmatch(r"[!-~]{16,512}", self.token):
            raise BadInput("the API's token must be 16 to 512 visible ASCII characters")
        if not self.token and not is_loopback(self.host):
            raise BadInput(
                f"without a token the API listens on loopback only, not on {self.host}", "Set PGHC_API_TOKEN_FILE."
            )
        for origin in self.origins:
            if origin != "*" and (not re.fullmatch(r"https?://[^/\s]+", origin) or origin != origin.lower()):
                raise BadInput(f"{origin!r} is no origin", "An origin is like https://example.org:8443, or * for all.")
        if not 0 <= self.port <= 65_535 or not 0 < self.append_seconds <= 600:
            raise BadInput(f"port {self.port}, append_seconds {self.append_seconds:g}: out of range")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise BadInput(f"there is no log level {self.log_level!r}")
        if self.live_page and not re.fullmatch(r"https?://[^\s<>\"']+", self.live_page):
            raise BadInput(f"{self.live_page!r} is no address of a page", "It is like http://127.0.0.1:8090/.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> Settings:
        """From ``PGHC_API_WRITER``, ``PGHC_API_TOKEN_FILE``, ``PGHC_API_ORIGINS`` (separated by commas),
        ``PGHC_API_APPEND_SECONDS``, ``PGHC_API_LOG_LEVEL`` and ``PGHC_API_LIVE_PAGE``; what is ``given`` goes first.
        Raises `BadInput`.
        """
        found: dict[str, Any] = {}
        for name in ("writer", "log_level", "live_page"):
            if value := environment.get(f"PGHC_API_{name.upper()}"):
                found[name] = value
        if path := environment.get("PGHC_API_TOKEN_FILE"):
            found["token"] = read_token(path)
        if origins := environment.get("PGHC_API_ORIGINS"):
            found["origins"] = tuple(origin.strip() for origin in origins.split(",") if origin.strip())
        if seconds := environment.get("PGHC_API_APPEND_SECONDS"):
            try:
                found["append_seconds"] = float(seconds)
            except ValueError as error:
                raise BadInput(f"PGHC_API_APPEND_SECONDS is {seconds!r}, not a number") from error
        return cls(**found | given)


def read_token(path: str | Path) -> str:
    """The token in a file. Raises `BadInput`."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the token file {path} cannot be read: {error}") from error


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
