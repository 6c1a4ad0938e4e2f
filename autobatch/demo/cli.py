"""`python -m autobatch demo`: one shop page, and six ways to call Redis."""

from __future__ import annotations

import argparse
import math
import signal
import sys

_DESCRIPTION = """
Serves one shop page in six ways, over a link with a delay, from a Valkey server of its own; prints
what each takes, and draws it on a page. It needs redis-autobatch[demo].
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `python -m autobatch`."""
    parser = commands.add_parser(
        "demo", help="show what batching is worth", description=_DESCRIPTION
    )
    parser.add_argument("--rtt", type=float, default=1, help="the link's milliseconds each way")
    parser.add_argument("--port", type=int, default=8000, help="the page's port; 0: a free one")
    parser.add_argument("--cluster", action="store_true", help="on a cluster of three primaries")
    parser.add_argument("--once", action="store_true", help="end after the table")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if not 0 <= options.rtt < math.inf:
        print(f"autobatch: --rtt is 0 or more, not {options.rtt}", file=sys.stderr)
        return 2
    # Until the demo takes over, nothing has to be ended: Ctrl-C needs no traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from autobatch.demo.run import show  # noqa: PLC0415  # what it needs is an extra
    except ImportError as error:
        print(f"autobatch: {error}: pip install 'redis-autobatch[demo]'", file=sys.stderr)
        return 2
    show(options.rtt, options.port, cluster=options.cluster, once=options.once)
    return 0
