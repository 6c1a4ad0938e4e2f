"""A load generator: `python -m bench.web_load PORT PATH REQUESTS CONCURRENCY`, to be run by web.py.

It keeps so many connections busy, and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> str:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise ValueError(f"{path}: {head!r}")
    return (await reader.readexactly(int(length[1]))).decode()


async def load(port: int, path: str, requests: int, concurrency: int) -> dict[str, object]:
    """Return the seconds that it took, those of each request, and the bodies that came."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(concurrency)]
    # Not measured: the application opens its connections, too.
    await asyncio.gather(*[request(*connection, path) for connection in connections])
    latencies: list[float] = []
    bodies: set[str] = set()
    turns = iter(range(requests))

    async def work(
        turns: Iterator[int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for _ in turns:
            start = time.perf_counter()
            bodies.add(await request(reader, writer, path))
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*[work(turns, *connection) for connection in connections])
    seconds = time.perf_counter() - start
    for _, writer in connections:
        writer.close()
        await writer.wait_closed()
    return {"seconds": seconds, "latencies": latencies, "bodies": sorted(bodies)}


if __name__ == "__main__":
    port, path, requests, concurrency = sys.argv[1:]
    print(json.dumps(asyncio.run(load(int(port), path, int(requests), int(concurrency)))))
