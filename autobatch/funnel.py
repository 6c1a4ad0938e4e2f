"""The funnel: every call of a batching client, of either kind, comes through here."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from redis.commands.core import AsyncScript
from redis.exceptions import DataError

from autobatch.ambient import Scope
from autobatch.aside import aside, aside_module
from autobatch.command import (
    IN_LIBRARY,
    NEVER_DECODE,
    PLAIN,
    Command,
    Script,
    ScriptCall,
    Travel,
    calling_frame,
    spelled_out,
    traits_of,
)
from autobatch.errors import AutobatchError
from autobatch.future import Future, future_of, set_promise, unwrap
from autobatch.promise import PENDING, Failure, Promise
from autobatch.streams import called_by, looks_at_reply, measured
from autobatch.wire.connection import HIGHEST, LOWEST, PACKED_FAST

C = TypeVar("C", bound=Command)
P = ParamSpec("P")

# redis-py's own dict of callbacks folds case in Python, at each access. Its keys are upper case.
_dict_get: Any = dict.get
_getframe: Any = sys._getframe  # public in all but name
_new: Any = object.__new__
_EXPIRIES = {"ex": "EX", "px": "PX"}
_NO_OPTIONS: dict[str, Any] = {}


if TYPE_CHECKING:

    def constructed_as(
        base: Callable[P, None],
    ) -> Callable[[Callable[..., None]], Callable[P, None]]:
        """Show a type checker the arguments of redis-py's constructor."""


class Funnel:
    """What batching clients have in common, synchronous and asyncio ones: how calls are queued."""

    # The client that this one is the twin of: it owns the pool.
    _origin: Any = None
    _future_type: ClassVar[type[Future]] = Future
    _eager_type: ClassVar[type[Any]]

    retry_writes = False
    response_callbacks: Any
    get_encoder: Any

    def __init__(self, *args: Any, retry_writes: bool = False, **kwargs: Any) -> None:
        """Create a client.

        Args:
            args: as for redis-py's client.
            retry_writes: send what may have run again even if it writes, as often as the
                client's `Retry` says. A command may then run more than once: at least once
                instead of at most once.
            kwargs: as for redis-py's client.
        """
        super().__init__(*args, **kwargs)
        self.retry_writes = retry_writes

    @classmethod
    def from_url(cls, url: str, *args: Any, retry_writes: bool = False, **kwargs: Any) -> Self:
        """Return a client for a URL, as redis-py's client does, with the constructor's options."""
        client: Any = super().from_url(url, *args, **kwargs)  # type: ignore[misc]  # redis-py's
        client.retry_writes = retry_writes
        made: Self = client
        return made

    @property
    def eager(self) -> Self:
        """The plain view of this client: it flushes what waits, runs, and returns plain values.

        It uses the same pool. Give it to libraries that test a reply with `is None`. That of an
        asyncio client gives coroutines.
        """
        eager: Self = twin_of(self, self._eager_type)
        return eager

    @property
    def batching(self) -> Self:
        """The client whose eager view this is; a client that batches is its own."""
        return self

    @property
    def root(self) -> Any:
        """The client that this one is a view of, however many times removed: it owns the rest."""
        client: Any = self
        while isinstance(client, Funnel) and client._origin is not None:
            client = client._origin
        return client

    @functools.cached_property
    def _wire(self) -> Any:
        """What the commands of this client travel on."""
        raise NotImplementedError

    def _run_alone(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run a command that steps aside, after what waits in `scope`."""
        raise NotImplementedError

    def _queue(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Queue a command and return its Future."""
        name = args[0]
        wire = self._wire
        try:
            traits = PLAIN.get(name)
            if traits is None or NEVER_DECODE in options:
                return self._call_unusual(scope, args, options)
            for arg in args:
                kind = type(arg)
                if kind not in PACKED_FAST and (kind is not int or not LOWEST < arg < HIGHEST):
                    return self._call_unusual(scope, args, options)
            packed = wire.pack_fast(args)
        except (TypeError, DataError):
            return self._call_unusual(scope, args, options)
        # A frame becomes an object when it is asked for, which costs: so not the nearest two.
        try:
            caller = _getframe(2)
            if len(options) == 1 and "keys" in options:
                options = _NO_OPTIONS  # which nobody asks for: two objects less to keep
            while IN_LIBRARY[caller.f_code.co_filename]:
                caller = caller.f_back
            code, instruction = caller.f_code, caller.f_lasti
        except (ValueError, AttributeError):  # a thread or a greenlet that starts in redis-py
            code, instruction = None, 0
        # Command() and future_of(), spelled out: two calls less are a seventh of the time.
        command = _new(Command)
        command.outcome = PENDING
        command.owner = scope
        command.number = 0
        command.callbacks = None
        command.traits = traits
        command.args = args
        command.options = options
        command.packed = packed
        command.callback = _dict_get(self.response_callbacks, name)
        command.wire = wire
        command.code = code
        command.instruction = instruction
        scope.add(command)
        future = _new(self._future_type)
        set_promise(future, command)
        return future

    def _call_unusual(self, scope: Scope, called: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a command that is spelled unusually, or does not travel like most."""
        called = without_futures(called)
        args = spelled_out(called)
        traits = traits_of(args)
        script = None
        alone = traits.travel_of(args) is Travel.ALONE
        if traits.script is not None and not alone:
            script = self._wire.scripts.get(_digest(args))
            # Without its source, only the caller can handle a NOSCRIPT, as redis-py's Script
            # does: at the call.
            alone = script is None and not scope.held
        if alone:
            if scope.held:
                raise AutobatchError(
                    f"{traits.name} runs on a connection of its own, so it cannot be part of an "
                    "atomic block: call it before or after the block, or through client.eager"
                )
            return self._run_alone(scope, called, options)
        if script is None:
            command = self._command(Command, called, options, scope)
        else:
            command = call = self._command(ScriptCall, called, options, scope)
            call.script = script
        scope.add_unusual(command)
        return future_of(command, self._future_type)

    def _plain_command(self, args: tuple[Any, ...], options: dict[str, Any]) -> Command | None:
        """Return what most calls outside a scope are; None for what `_command` has to look at."""
        wire = self._wire
        try:
            traits = PLAIN.get(args[0])
            if traits is None or NEVER_DECODE in options:
                return None
            for arg in args:
                kind = type(arg)
                if kind not in PACKED_FAST and (kind is not int or not LOWEST < arg < HIGHEST):
                    return None
            packed = wire.pack_fast(args)
        except (TypeError, DataError):
            return None
        callback = _dict_get(self.response_callbacks, args[0])
        return Command(traits, args, options, packed, callback, wire, _NOBODY, None)

    def _command(
        self,
        kind: type[C],
        called: tuple[Any, ...],
        options: dict[str, Any],
        scope: Scope | None,
    ) -> C:
        args = spelled_out(called)
        packed = self._wire.pack(args)
        callback = None
        if isinstance(called[0], str):  # redis-py's callbacks go by the name as it was called
            callback = _dict_get(self.response_callbacks, called[0].upper())
        owner = _NOBODY if scope is None else scope
        caller = None if scope is None else calling_frame()
        return kind(traits_of(args), args, options, packed, callback, self._wire, owner, caller)

    # A type checker goes on seeing redis-py's signatures.
    if not TYPE_CHECKING:

        def set(self, name, value, *args, **options):
            # redis-py's takes longer over its sixteen parameters than all the rest. This is what
            # it makes of the two forms that nearly all calls have.
            if not args:
                if not options:
                    return self.execute_command("SET", name, value)
                if len(options) == 1:
                    ((option, expiry),) = options.items()
                    if option in _EXPIRIES and type(expiry) is int:
                        return self.execute_command("SET", name, value, _EXPIRIES[option], expiry)
            return super().set(name, value, *args, **options)

        # What looks at its reply.

        def xread(self, *args, **kwargs):
            return self._read_streams(super().xread, None, args, kwargs)

        def xreadgroup(self, groupname, *args, **kwargs):
            return self._read_streams(super().xreadgroup, groupname, (groupname, *args), kwargs)

        def _read_streams(self, method, group, args, kwargs):
            if not looks_at_reply(method):
                return method(*args, **kwargs)
            called, options = called_by(method, args, kwargs)
            return measured(self.execute_command(*called, **options), group)

        # What takes a connection itself.

        def pipeline(self, *args, **kwargs):
            return self._aside(super().pipeline(*args, **kwargs))

        def pubsub(self, *args, **kwargs):
            return self._aside(super().pubsub(*args, **kwargs))

        def monitor(self, *args, **kwargs):
            return self._aside(super().monitor(*args, **kwargs))

        def json(self, *args, **kwargs):
            return aside_module(super().json(*args, **kwargs))

        def ft(self, *args, **kwargs):
            return aside_module(super().ft(*args, **kwargs))

        def ts(self, *args, **kwargs):
            return aside_module(super().ts(*args, **kwargs))

        def _aside(self, thing):
            return aside(thing)

    def _know_script(self, source: Any) -> None:
        """Remember a script's text, so that its digest can travel in batches."""
        text = self.get_encoder().encode(source)
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        self._wire.scripts[digest] = Script(digest, source)


class Eager(Funnel):
    """What the eager views of all clients have in common."""

    @property
    def eager(self) -> Self:
        return self

    @property
    def batching(self) -> Any:
        return self._origin


class ScriptAtOnce:
    """What lets an asyncio script give a Future at once, called with a batching client."""

    registered_client: Any
    script: Any
    sha: Any

    def __call__(self, keys: Any = None, args: Any = None, client: Any = None) -> Awaitable[Any]:
        client = self.registered_client if client is None else client
        if not isinstance(client, Funnel):
            plain: Any = super()
            answer: Awaitable[Any] = plain.__call__(keys, args, client)
            return answer
        client._know_script(self.script)  # one of ours
        keys = tuple(keys or ())
        batching: Any = client
        evalsha: Callable[..., Awaitable[Any]] = batching.evalsha
        return evalsha(self.sha, len(keys), *keys, *(args or ()))


class BatchingScript(ScriptAtOnce, AsyncScript):  # type: ignore[misc]  # redis-py's is a coroutine
    """redis-py's script; called with a batching client, it gives a Future at once."""


def without_futures(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments as they are now: Futures are forced, what can change is copied."""
    plain = [unwrap(arg) for arg in args]
    return tuple([bytes(a) if isinstance(a, (bytearray, memoryview)) else a for a in plain])


def names_himport(name: Any) -> bool:
    """Return whether a command needs its connection prepared first, which redis-py does."""
    text = name if isinstance(name, str) else bytes(name).decode("latin-1")
    return text.upper().startswith("HIMPORT")


def _digest(args: tuple[Any, ...]) -> str:
    digest = args[1] if len(args) > 1 else ""
    return (digest.decode("latin-1") if isinstance(digest, bytes) else str(digest)).lower()


class _Nobody:
    """The owner of a command outside a scope: it is settled before anybody can ask anything."""

    def force(self, promise: Promise) -> None:
        raise AssertionError(f"{promise.describe()} has no reply, and no scope")

    def want(self, promise: Promise) -> None:
        pass

    def remember(self, failure: Failure) -> None:
        pass

    def follow(self, promise: Promise) -> None:
        pass

    def resent(self, promise: Promise) -> None:
        pass

    @property
    def written_slots(self) -> set[int]:
        return set()


_NOBODY = _Nobody()


T = TypeVar("T")


def twin_of(client: T, kind: type[Any]) -> Any:
    """Return another view of a client, of class `kind`, on the same pool and callbacks."""
    client_type: Any = type(client)
    twin_type: Any = kind
    twin = object.__new__(twin_class(client_type, twin_type))
    twin.__dict__.update(client.__dict__)
    for base in client_type.__mro__:  # redis-py's asyncio client of a cluster has slots, too
        for name in getattr(base, "__slots__", ()):
            if hasattr(client, name) and not name.startswith("__"):
                setattr(twin, name, getattr(client, name))
    twin._origin = client
    return twin


@functools.cache  # as many as there are client classes
def twin_class(client: Any, kind: Any) -> Any:
    """Return the class of twins of class `kind` for clients of class `client`."""
    if issubclass(kind, client):
        return kind
    # Behind the user's class: what it overrides keeps its say over what it calls.
    return type(client.__name__, (client, kind), {"__module__": client.__module__})
