"""The debug panel: a page with the last requests, for development."""

from __future__ import annotations

import collections
import ipaddress
from collections.abc import Callable
from http import HTTPStatus

from autobatch import report
from autobatch.report import ScopeRecord
from autobatch.waterfall import page

# A request that a proxy sends on comes from elsewhere, however near the proxy is. A proxy that
# tells of nothing, and asks for "localhost", cannot be seen.
_FORWARDED = frozenset({"cf-connecting-ip", "forwarded", "true-client-ip", "via", "x-real-ip"})
_COMMANDS = 100_000  # of all scopes that it shows
_REFUSED = b"""This panel is for development: it answers clients on this machine only, asked for by
the machine's own name (localhost), and not through a proxy. To open it to others, make it with
Panel(allow=...).
"""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# Whether a client may see the panel: its address, and the headers by lower-case name.
Allow = Callable[[str | None, dict[str, str]], bool]


def from_this_machine(client: str | None, headers: dict[str, str]) -> bool:
    """Return whether a client is on this machine and has asked for it by its own name.

    Another name could be a foreign page's, whose owner lets it lead here (DNS rebinding).

    Args:
        client: its address, if the server tells.
        headers: of the request, by lower-case name.
    """
    if client is None or any(
        name in _FORWARDED or name.startswith("x-forwarded-") for name in headers
    ):
        return False
    return _is_loopback(client) and _names_this_machine(headers.get("host", ""))


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A socket of both families sees clients of IPv4 as ones of IPv6.
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _names_this_machine(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


class Panel:
    """A page that shows the last scopes as waterfalls; for `BatchMiddleware(panel=...)`.

    It keeps the records of scopes from when it is made until `close()`.

    Attributes:
        path: where it is served.
    """

    def __init__(
        self, path: str = "/_autobatch", *, limit: int = 50, allow: Allow = from_this_machine
    ) -> None:
        """Create a panel.

        Args:
            path: where it is served, from "/" on.
            limit: how many scopes it shows; fewer if these have very many commands.
            allow: called with the address of a client, or None, and the headers of its request
                by lower-case name; returns whether it may see the panel. By default clients on
                this machine may.

        Raises:
            ValueError: the path does not begin with "/", or the limit is less than 1.
        """
        if not path.startswith("/"):
            raise ValueError(f'the path of a panel begins with "/": {path!r} does not')
        if limit < 1:
            raise ValueError("a panel shows at least 1 scope")
        self.path = path
        self._allow = allow
        self._scopes: collections.deque[ScopeRecord] = collections.deque(maxlen=limit)
        self._subscription = report.subscribe(on_scope=self._keep)

    def _keep(self, scope: ScopeRecord) -> None:
        self._scopes.appendleft(scope)
        # For the sake of memory, and of the time that the page takes.
        while sum(one.commands for one in list(self._scopes)) > _COMMANDS and len(self._scopes) > 1:
            self._scopes.pop()

    def serves(self, path: str) -> bool:
        """Return whether a path, inside the application, is the panel's; a "/" may follow it."""
        return path.rstrip("/") == self.path.rstrip("/")

    def close(self) -> None:
        """Hear of no scope any more."""
        self._subscription.cancel()

    def answer(
        self, method: str, client: str | None, headers: dict[str, str]
    ) -> tuple[HTTPStatus, dict[str, str], bytes]:
        """Return the answer to a request: status, headers, and body.

        Args:
            method: of the request.
            client: the address that it comes from, if the server tells.
            headers: of the request, by lower-case name.
        """
        if not self._allow(client, headers):
            status, kind, body = HTTPStatus.FORBIDDEN, "text/plain", _REFUSED
        elif method not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET it.\n"
        else:
            status, kind, body = HTTPStatus.OK, "text/html", page(list(self._scopes))
        more = {"Allow": "GET, HEAD"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        return status, _HEADERS | about | more, b"" if method == "HEAD" else body
