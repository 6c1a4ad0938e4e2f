"""`python -m autobatch.testing`: a proxy that stands for a network."""

from __future__ import annotations

import argparse
import contextlib

from autobatch.testing.proxy import Proxy


def main() -> None:
    """Run a proxy from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autobatch.testing", description="A proxy that stands for a network."
    )
    parser.add_argument("--server", type=int, required=True, help="the server's port")
    parser.add_argument(
        "--listen", type=int, default=0, help="the port to listen on (else a free one)"
    )
    parser.add_argument("--delay", type=float, default=1.0, help="milliseconds each way")
    parser.add_argument("--jitter", type=float, default=0.0, help="milliseconds more, at random")
    options = parser.parse_args()
    try:
        proxy = Proxy(
            options.server,
            listen=options.listen,
            delay=options.delay / 1000,
            jitter=options.jitter / 1000,
            count=False,
        )
    except (OSError, OverflowError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"listening on 127.0.0.1:{proxy.port}", flush=True)  # noqa: T201
    with contextlib.suppress(KeyboardInterrupt):
        proxy.serve_forever()


if __name__ == "__main__":
    main()
