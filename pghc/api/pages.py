"""What a browser is shown: at ``/`` what this is, at ``/docs`` the interface. Nothing is fetched from another host.

The interface is drawn by Swagger UI, whose files the package fastapi-offline ships.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files

from fastapi import FastAPI, Response

from pghc.api.settings import Settings

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #222 }
code { background: #eee; padding: 0 .2em } h1 { font-size: 1.4rem } dt { font-weight: bold }
"""
#: Whose scripts and styles count; everything else is refused by the browser.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STYLE_ONLY = f"{NOTHING}; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'"
# Swagger UI styles its elements one by one, and has its pictures inside its stylesheet
SWAGGER = f"{NOTHING}; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"

DOCS = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>PGHC: the interface</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/docs/swagger-ui.css">
<div id="interface"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/begin.js"></script>
"""
BEGIN = "SwaggerUIBundle({url: '/openapi.json', dom_id: '#interface', validatorUrl: null})\n"


def add_to(app: FastAPI, settings: Settings) -> None:
    """Add the pages to a node's application. They are no part of its interface for programs."""
    front = _front(app.summary or "", settings.live_page)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(front, media_type="text/html", headers={"Content-Security-Policy": STYLE_ONLY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(DOCS, media_type="text/html", headers={"Content-Security-Policy": SWAGGER})

    @app.get("/docs/begin.js", include_in_schema=False)
    async def begin() -> Response:
        return Response(BEGIN, media_type="text/javascript")

    @app.get("/docs/swagger-ui.css", include_in_schema=False)
    async def style() -> Response:
        return Response(_shipped("swagger-ui.css"), media_type="text/css")

    @app.get("/docs/swagger-ui-bundle.js", include_in_schema=False)
    async def script() -> Response:
        return Response(_shipped("swagger-ui-bundle.js"), media_type="text/javascript")


@cache
def _shipped(name: str) -> bytes:
    return (files("fastapi_offline") / "static" / name).read_bytes()


def _front(summary: str, live_page: str) -> str:
    live = (
        f'<a href="{escape(live_page)}">The live page</a> shows the regions at work.'
        if live_page
        else "<code>pghc watch</code>, typed where the cluster runs, opens the live page: the regions at work."
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>PGHC</title><meta name="viewport" content="width=device-width">
<style>{STYLE}</style>
<h1>PGHC: {escape(summary)}</h1>
<p>A laboratory for consensus, total-order broadcast and causality on real Postgres and ZooKeeper servers. This is the
API node of one region: what programs append to the chain, and read of it, goes through here.</p>
<p>{live}</p>
<dl>
<dt><a href="/docs">/docs</a></dt><dd>the interface, to be read and tried out</dd>
<dt><a href="/chain/recent">/chain/recent</a></dt><dd>the newest entries;
<code>curl -X POST http://&lt;this address&gt;/chain</code> appends one</dd>
<dt><a href="/chain/verify">/chain/verify</a></dt><dd>the verdict on the last thousand</dd>
<dt><a href="/cluster/config">/cluster/config</a></dt><dd>regions and servers</dd>
<dt><a href="/metrics">/metrics</a></dt><dd>measurements, for Prometheus</dd>
</dl>
"""
