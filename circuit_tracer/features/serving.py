"""The local site of a store: pages of `site`, read-only, for this machine unless told otherwise."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.features import site
from circuit_tracer.features.store import Store

LOCAL = ("127.0.0.1", "localhost", "[::1]")
LONGEST = 200
"""Characters of a search."""


def server(store: Store, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of a store's pages; `serve_forever` runs it.

    On a local address it answers only to local names, so that no other site in the same browser
    can read it.

    Raises:
        InputError: an address that cannot be listened at.
    """
    one_at_a_time = threading.Lock()
    local = host in ("127.0.0.1", "localhost")

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "circuit-tracer", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            name = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if local and name not in LOCAL:
                self._send(403, "This site is for this machine only.", "text/plain", body)
                return
            where = urlsplit(self.path)
            query = parse_qs(where.query).get("q", [""])[0][:LONGEST]
            try:
                with one_at_a_time:
                    found = site.page(store, unquote(where.path).lstrip("/"), True, query)
            except CircuitTracerError as error:
                self._send(500, str(error), "text/plain", body)
                return
            if found is None:
                self._send(404, "There is no such page.", "text/plain", body)
            else:
                self._send(200, found, "text/html", body)

        def _send(self, status: int, text: str, kind: str, body: bool) -> None:
            data = text.encode("utf-8", "replace")
            self.send_response(status)
            for header, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(data))),
                ("Content-Security-Policy", site.POLICY + "; frame-ancestors 'none'"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """A library prints nothing."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; --port 0 takes a "
            "free one"
        ) from error
