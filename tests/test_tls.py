"""Batches over TLS: they arrive whole, and where the other side cannot be trusted, not at all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch import batch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Cut, Reset, free_port
from certificates import HOST, Authority, Front
from common import PATIENCE, eventually, meanwhile
from looping import in_loop, tidy

LARGE = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def front(proxy, authority):
    """A TLS server; the proxy behind it sees what was encrypted."""
    with Front(proxy.port, authority.server_context()) as front:
        yield front


def options(authority, retry, **others):
    return {
        "decode_responses": True,
        "retry": retry(NoBackoff(), 1),
        "socket_timeout": PATIENCE,
        "ssl_ca_certs": authority.path,
    } | others


def in_batch(port, authority, call, **others):
    """Return what `call` got, in a scope: each Future's value or error."""
    url = f"rediss://{HOST}:{port}"
    with autobatch.Redis.from_url(url, **options(authority, Retry, **others)) as client, batch():
        futures = call(client)
        return [future.exception() or future.value for future in futures]


async def awaited(port, authority, call, **others):
    """The same, of an asyncio client."""
    url = f"rediss://{HOST}:{port}"
    async with autobatch.asyncio.Redis.from_url(
        url, **options(authority, AsyncRetry, **others)
    ) as client:
        return await asyncio.gather(*call(client), return_exceptions=True)


def in_loop_of_asyncio(*args, **others):
    return asyncio.run(tidy(awaited(*args, **others)))


def in_loop_of_uvloop(*args, **others):
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(tidy(awaited(*args, **others)))


everywhere = pytest.mark.parametrize("run", [in_batch, in_loop_of_asyncio, in_loop_of_uvloop])


@everywhere
def test_many_commands(run, front, authority, proxy):
    """They are still one round trip."""
    got = run(front.port, authority, lambda client: [client.incr("n") for _ in range(1000)])
    assert got == [*range(1, 1001)]
    assert [len(names) for names in proxy.names] == [1000]


@everywhere
def test_large_values_both_ways(run, front, authority):
    """More than any buffer on the way holds; neither side waits for the other for ever."""
    values = [str(i) * LARGE for i in range(3)]

    def call(client):
        sets = [client.set(f"k{i}", value) for i, value in enumerate(values)]
        gets = [client.get(f"k{i}") for i in range(3)]
        return [*sets, *gets, client.set("last", values[0]), client.get("last")]

    assert run(front.port, authority, call) == [True] * 3 + values + [True, values[0]]


@in_loop
async def test_large_batches_of_many_tasks(front, authority):
    """What is written while the shared connection is full leaves when it is not, in order."""

    async def task(number):
        async with batch():
            client.append("log", f"{number % 10}" * 300_000)
            return len(await client.get("log"))

    async with autobatch.asyncio.Redis(
        host=HOST, port=front.port, ssl=True, **options(authority, AsyncRetry)
    ) as client:
        lengths = await asyncio.gather(*map(task, range(20)))
    assert lengths == [300_000 * i for i in range(1, 21)]


# ---- trust -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@everywhere
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda _, stranger: stranger.server_context(), "CERTIFICATE_VERIFY_FAILED"),
        (lambda authority, _: authority.server_context("other.example"), "mismatch"),
        (lambda authority, _: authority.server_context(expired=True), "expired"),
        (lambda authority, _: authority.server_context(mutual=True), ""),
    ],
    ids=["other authority", "other host", "expired", "no certificate of the client's"],
)
def test_without_trust_nothing_is_sent(run, made, reason, authority, stranger, proxy):
    """Every Future says so, with the errors that redis-py has for it."""
    with Front(proxy.port, made(authority, stranger)) as front:
        errors = run(front.port, authority, lambda client: [client.set("a", 1), client.get("a")])
    for error in errors:
        assert isinstance(error, NotSent)
        assert isinstance(error, redis.ConnectionError)
        assert reason in str(error)
    assert proxy.commands == 0


@everywhere
def test_certificates_of_both_sides(run, authority, proxy):
    """The client has one as well."""
    certificate, key = authority.files_for("client.example")
    with Front(proxy.port, authority.server_context(mutual=True)) as front:
        got = run(
            front.port,
            authority,
            lambda client: [client.set("a", 1), client.get("a")],
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    assert got == [True, "1"]


@everywhere
def test_a_server_without_tls_learns_nothing(run, authority):
    """Neither the commands nor the password leave unencrypted."""
    heard = b""

    def listen():
        nonlocal heard
        link, _ = listener.accept()
        listener.close()  # what is tried again is refused
        with link:
            heard = link.recv(1 << 16)
            link.sendall(b"-ERR Protocol error\r\n")

    with socket.create_server((HOST, 0)) as listener, meanwhile(listen):
        port = listener.getsockname()[1]
        [error] = run(
            port, authority, lambda client: [client.set("a", "secret")], password="secret"
        )
    assert isinstance(error, NotSent)
    assert heard.startswith(b"\x16\x03")  # the handshake of TLS
    assert b"secret" not in heard


# ---- a connection that is lost -------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("fault", [Cut, Reset])
def test_lost_in_the_middle_of_the_replies(run, fault, front, authority, proxy, plain):
    """As without TLS: what was answered has its value, a read is repeated, a write is not."""
    plain.set("read", "it")
    proxy.arm(fault(reply=len(":1\r\n$2")))
    first, read, last = run(
        front.port,
        authority,
        lambda client: [client.incr("n"), client.get("read"), client.incr("m")],
    )
    # A reset may overtake what was sent before it.
    assert first == 1 or (fault is Reset and isinstance(first, OutcomeUnknown))
    assert read == "it"
    assert isinstance(last, OutcomeUnknown)
    assert plain.mget("n", "m") == ["1", "1"]


@everywhere
def test_lost_in_the_middle_of_the_requests(run, front, authority, proxy, plain):
    """What left in encrypted form before the loss may have run: it is not sent again."""
    proxy.arm(Cut(request=LARGE))
    first, *_ = run(
        front.port,
        authority,
        lambda client: [
            client.incr("n"),
            *[client.set(f"k{i}", str(i) * LARGE) for i in range(4)],
        ],
    )
    assert plain.get("n") == "1"
    assert first == 1 or isinstance(first, OutcomeUnknown)


# ---- a server that speaks TLS itself -------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(authority, tmp_path_factory):
    """The port of a redis-server that wants certificates, where one with TLS is installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server")
    certificate, key = authority.files_for(HOST)
    port = free_port()
    settings = {
        "port": 0,
        "tls-port": port,
        "tls-cert-file": certificate,
        "tls-key-file": key,
        "tls-ca-cert-file": authority.path,
        "save": "",
    }
    command = [binary, *(part for name, value in settings.items() for part in (f"--{name}", value))]
    process = subprocess.Popen(
        [*map(str, command)], cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL
    )

    def listens():
        if process.poll() is not None:
            pytest.skip("this redis-server has no TLS")
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((HOST, port)).close()
            return True
        return False

    try:
        eventually(listens)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.server
@everywhere
def test_redis_with_tls(run, tls_server, authority):
    """It is another implementation than the front, and the real one."""
    certificate, key = authority.files_for("client.example")

    def call(client):
        return [
            client.set("n", 0),
            *[client.incr("n") for _ in range(1000)],
            client.set("large", "x" * LARGE),
            client.get("large"),
        ]

    files = {"ssl_certfile": certificate, "ssl_keyfile": key}
    got = run(tls_server, authority, call, **files)
    assert got == [True, *range(1, 1001), True, "x" * LARGE]
    for error in run(tls_server, authority, lambda client: [client.incr("n"), client.get("n")]):
        assert isinstance(error, NotSent)
