"""What tests need: a proxy that counts what a program really sends, and breaks connections.

    with Proxy(port=6379) as proxy:
        client = autobatch.Redis(port=proxy.port)
        ...
        assert proxy.names == [["GET", "SET"]]      # one exchange of two commands
        proxy.arm(Cut(reply=5))                     # five bytes of the next replies, then the end
        ...

All of it happens on real connections to a real server. The proxy can delay, too, to stand for a
network: `python -m autobatch.testing --help`. `Cluster` forms a real cluster, with such a proxy in
front of each node if wanted. `unbatched` turns batching off, to see whether a test depends on it.
"""

from autobatch.switch import unbatched
from autobatch.testing.cluster import Cluster
from autobatch.testing.faults import (
    Answer,
    Clog,
    Cut,
    Delay,
    Drip,
    Fault,
    HalfClose,
    Hold,
    HoldRequests,
    Insert,
    Link,
    Reset,
    Signal,
    Silence,
    Swallow,
)
from autobatch.testing.proxy import Exchange, Proxy, free_port

__all__ = [
    "Answer",
    "Clog",
    "Cluster",
    "Cut",
    "Delay",
    "Drip",
    "Exchange",
    "Fault",
    "HalfClose",
    "Hold",
    "HoldRequests",
    "Insert",
    "Link",
    "Proxy",
    "Reset",
    "Signal",
    "Silence",
    "Swallow",
    "free_port",
    "unbatched",
]
