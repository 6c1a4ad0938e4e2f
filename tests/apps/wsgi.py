"""What test_wsgi.py serves under gunicorn: an address for each thing that a request can do."""

from __future__ import annotations

import contextvars
import io
import os
import threading
import time

import autobatch
from autobatch.wsgi import BatchMiddleware

redis = autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
redis.incr("imports")  # with --preload, on a connection that the workers must not share
variable = contextvars.ContextVar("variable", default="untouched")


def visit():
    """Call three commands, and look at none of their values."""
    redis.incr("visits")
    redis.expire("visits", 60)
    redis.sadd("visitors", "ada")


def fail():
    """Call a command whose error nobody looks at."""
    redis.set("text", "a string")
    redis.lpush("text", 1)


def page(environ):
    visit()
    return [b"visited"]


def failing(environ):
    fail()
    return [b"all is well"]


def raising(environ):
    visit()
    fail()
    raise RuntimeError("broken")


_all_threads = threading.Barrier(4, timeout=10)


def increment(environ):
    """Count in a key of the request's own, and read it back while other requests do so too."""
    key = environ["QUERY_STRING"]
    redis.incr(key)
    if environ["wsgi.multithread"]:
        _all_threads.wait()
    total = redis.get(key)
    return [f"{key} is {total}".encode()]


def leaking(environ):
    """Tell what an earlier request of this thread has left behind, and leave something."""
    found = variable.get()
    variable.set("touched")
    return [f"{threading.get_ident()} {found}".encode()]


def chunks(environ):
    """Call a command for each chunk; the variable was set where the body was made."""
    variable.set("set by the application")

    def body():
        for number in range(3):
            redis.rpush("chunks", number)
            yield f"{number} {variable.get()}\n".encode()

    return body()


def failing_first_chunk(environ):
    fail()
    yield b"all is well"


def failing_second_chunk(environ):
    yield b"first "
    fail()
    yield b"second "
    yield b"third"


def raising_first_chunk(environ):
    fail()
    raise RuntimeError("broken")
    yield b"never"


def raising_second_chunk(environ):
    yield b"first "
    fail()
    raise RuntimeError("broken")


def endless_chunks(environ):
    redis.set("stream", "open")
    try:
        while True:
            yield b"more "
            time.sleep(0.01)
    finally:
        redis.set("stream", "closed")


class Closing:
    """A body that counts, in Redis, how often it is closed."""

    def __init__(self, chunks):
        self._chunks = chunks

    def __iter__(self):
        return iter(self._chunks)

    def close(self):
        redis.incr("closed")


def closing(environ):
    visit()
    return Closing([b"visited"])


def failing_closing(environ):
    fail()
    return Closing([b"all is well"])


def file(environ):
    visit()
    return environ["wsgi.file_wrapper"](io.BytesIO(b"a file"))


ROUTES = {
    "/page": page,
    "/fail": failing,
    "/raise": raising,
    "/increment": increment,
    "/leak": leaking,
    "/chunks": chunks,
    "/chunks/fail-first": failing_first_chunk,
    "/chunks/fail-second": failing_second_chunk,
    "/chunks/raise-first": raising_first_chunk,
    "/chunks/raise-second": raising_second_chunk,
    "/chunks/endless": endless_chunks,
    "/close": closing,
    "/close/fail": failing_closing,
    "/file": file,
}


def bare(environ, start_response):
    """Be what its path says."""
    path = environ["PATH_INFO"]
    if path.startswith("/twice/"):
        redis.incr("outside")
        environ["PATH_INFO"] = path.removeprefix("/twice")
        return BatchMiddleware(BatchMiddleware(bare))(environ, start_response)
    if path not in ROUTES:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Path", path)])
    return ROUTES[path](environ)


app = BatchMiddleware(bare)
