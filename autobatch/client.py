"""The synchronous clients: `Redis`, its eager view, and `wrap`."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from redis.exceptions import DataError

from autobatch.aside import aside, aside_module
from autobatch.command import (
    IN_LIBRARY,
    NEVER_DECODE,
    PLAIN,
    Command,
    Script,
    ScriptCall,
    Traits,
    Travel,
    calling_frame,
    traits_of,
)
from autobatch.errors import AutobatchError
from autobatch.future import Future, future_of, set_promise, unwrap
from autobatch.promise import PENDING, Failure, Promise
from autobatch.scope import Scope, current, step_aside
from autobatch.wire.sync import Wire

C = TypeVar("C", bound=Command)

# redis-py's own dict of callbacks folds case in Python, at each access. Its keys are upper case.
_dict_get: Any = dict.get
_getframe: Any = sys._getframe
_new: Any = object.__new__


class Redis(redis.Redis):
    """redis-py's client, batching: inside a scope every call returns a Future at once.

    Constructor, `from_url`, methods and types are redis-py's. Outside a scope a call runs at
    once and returns the plain value. A write whose reply was lost is never sent again.
    """

    # The client that this one is the twin of: it owns the pool.
    _origin: redis.Redis | None = None

    @functools.cached_property
    def _wire(self) -> Wire:
        pool = self.connection_pool
        if self.connection is not None:
            return Wire(pool, self.connection, self.single_connection_lock)
        # On the pool itself: clients that share it share the batch, and it lives as long.
        wire: Wire = pool.__dict__.setdefault("_autobatch_wire", Wire(pool))
        return wire

    @property
    def eager(self) -> Redis:
        """The plain view of this client: it flushes what waits, runs, and returns plain values.

        It uses the same pool. Give it to libraries that test a reply with `is None`.
        """
        return _twin(self, EagerRedis)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue a command and return its Future; outside a scope run it and return its value.

        Raises:
            redis.DataError: an argument cannot be sent.
        """
        scope = current()
        if scope is None or scope.closed:
            return super().execute_command(*args, **options)
        name = args[0]
        wire = self._wire
        try:
            traits = PLAIN.get(name)
            if traits is None or NEVER_DECODE in options:
                return self._call_unusual(scope, args, options)
            packed = wire.pack_fast(args)
        except (TypeError, DataError):
            return self._call_unusual(scope, args, options)
        caller = _getframe(1)
        if IN_LIBRARY[caller.f_code.co_filename]:
            caller = caller.f_back
            if IN_LIBRARY[caller.f_code.co_filename]:
                caller = calling_frame(caller)
        # Command() and future_of(), spelled out: two calls less are a seventh of the time.
        command = _new(Command)
        command.outcome = PENDING
        command.owner = scope
        command.callbacks = None
        command.traits = traits
        command.args = args
        command.options = options
        command.packed = packed
        command.callback = _dict_get(self.response_callbacks, name)
        command.wire = wire
        command.code = caller.f_code
        command.instruction = caller.f_lasti
        scope.add(command)
        future = _new(Future)
        set_promise(future, command)
        return future

    def _call_unusual(self, scope: Scope, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a command that is spelled unusually, or does not travel like most."""
        args = _without_futures(args)
        traits = traits_of(args)
        script = None
        alone = travel_of(traits, args) is Travel.ALONE
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
            scope.step_aside()
            return super().execute_command(*args, **options)
        if script is None:
            command = self._command(Command, traits, args, options, scope)
        else:
            command = call = self._command(ScriptCall, traits, args, options, scope)
            call.script = script
        scope.add_unusual(command)
        return future_of(command)

    def _command(
        self,
        kind: type[C],
        traits: Traits,
        args: tuple[Any, ...],
        options: dict[str, Any],
        scope: Scope | None,
    ) -> C:
        if traits.words is not None and _is_joined(args[0]):
            packed = self._wire.pack((*traits.words, *args[1:]))
        else:
            packed = self._wire.pack(args)
        callback = None
        if isinstance(args[0], str):
            callback = _dict_get(self.response_callbacks, args[0].upper())
        owner = _NOBODY if scope is None else scope
        caller = None if scope is None else calling_frame()
        return kind(traits, args, options, packed, callback, self._wire, owner, caller)

    # redis-py's execute_command, which instrumentation libraries hook into, ends here. Below it
    # redis-py would send a write again whose reply was lost; our own wire does not.
    def _execute_command(self, *args: Any, **options: Any) -> Any:
        args = _without_futures(args)
        traits = traits_of(args)
        if traits.name.startswith("HIMPORT") or self._caches:
            return super()._execute_command(*args, **options)
        value = self._wire.call(self._command(Command, traits, args, options, None))
        if traits.name == "SCRIPT LOAD":
            self._know_script(unwrap(value), args[-1])
        return value

    @property
    def _caches(self) -> bool:
        return getattr(self.connection_pool, "cache", None) is not None

    def _know_script(self, digest: Any, source: Any) -> None:
        text = digest.decode() if isinstance(digest, bytes) else str(digest)
        self._wire.scripts[text.lower()] = Script(text, source)

    # What looks at replies itself, or takes a connection itself. A type checker goes on seeing
    # redis-py's signatures.
    if not TYPE_CHECKING:

        def register_script(self, script):
            registered = super().register_script(script)
            self._know_script(registered.sha, script)
            return registered

        def __getitem__(self, name):
            value = unwrap(self.get(name))
            if value is None:
                raise KeyError(name)
            return value

        def lock(self, *args, **kwargs):
            # Lock.locked() tests `is not None`, and its other methods need each reply at once.
            return super(Redis, self.eager).lock(*args, **kwargs)

        def pipeline(self, *args, **kwargs):
            return aside(super().pipeline(*args, **kwargs))

        def pubsub(self, **kwargs):
            return aside(super().pubsub(**kwargs))

        def monitor(self):
            return aside(super().monitor())

        def json(self, *args, **kwargs):
            return aside_module(super().json(*args, **kwargs))

        def ft(self, *args, **kwargs):
            return aside_module(super().ft(*args, **kwargs))

        def ts(self, *args, **kwargs):
            return aside_module(super().ts(*args, **kwargs))

    def close(self) -> None:
        """Send what waits, then close the connections, as redis-py's client does."""
        step_aside()
        if self._origin is not None:
            self._origin.close()
        else:
            super().close()

    def __del__(self) -> None:
        # The garbage collector must not flush, and a twin must not close what it shares.
        if self._origin is None:
            # As redis-py does: a half-made client has nothing to close.
            with contextlib.suppress(Exception):
                super().close()


class EagerRedis(Redis):
    """The plain view of a batching client: `client.eager`."""

    @property
    def eager(self) -> Redis:
        return self

    def execute_command(self, *args: Any, **options: Any) -> Any:
        step_aside()
        return super(Redis, self).execute_command(*args, **options)


def wrap(client: redis.Redis) -> Redis:
    """Return the batching twin of a redis-py client.

    It shares the client's connection pool and response callbacks and is of a subclass of its
    class; closing it closes the client. The client itself stays as it was.

    Args:
        client: a `redis.Redis`, or one of a subclass of it, such as Sentinel's `master_for`
            makes. A client that batches already is returned as it is.

    Raises:
        TypeError: it is anything else.
    """
    if isinstance(client, EagerRedis) and isinstance(client._origin, Redis):
        return client._origin
    if isinstance(client, Redis):
        return client
    if isinstance(client, redis.client.Pipeline):
        raise TypeError("wrap() takes a client; a pipeline is a batch already")
    if not isinstance(client, redis.Redis):
        raise TypeError(
            f"wrap() takes a redis.Redis, not {type(client).__module__}.{type(client).__name__}"
        )
    return _twin(client, Redis)


def _twin(client: redis.Redis, kind: type[Redis]) -> Redis:
    twin: Redis = object.__new__(_twin_class(type(client), kind))
    twin.__dict__.update(client.__dict__)
    twin._origin = client
    return twin


@functools.cache  # as many as there are client classes
def _twin_class(client: type[redis.Redis], kind: type[Redis]) -> type[Redis]:
    if issubclass(kind, client):
        return kind
    # Behind the user's class: what it overrides keeps its say over what it calls.
    return type(client.__name__, (client, kind), {"__module__": client.__module__})


def travel_of(traits: Traits, args: tuple[Any, ...]) -> Travel:
    """Return how this very call travels."""
    return traits.travel if isinstance(traits.travel, Travel) else traits.travel(args)


def _without_futures(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([unwrap(arg) for arg in args])


def _is_joined(name: Any) -> bool:
    return (" " if isinstance(name, str) else b" ") in name


def _digest(args: tuple[Any, ...]) -> str:
    digest = args[1] if len(args) > 1 else ""
    return (digest.decode("latin-1") if isinstance(digest, bytes) else str(digest)).lower()


class _Nobody:
    """The owner of a command outside a scope: it is settled before anybody can ask anything."""

    def force(self, promise: Promise) -> None:
        raise AssertionError(f"{promise.describe()} has no reply, and no scope")

    def remember(self, failure: Failure) -> None:
        pass

    def follow(self, promise: Promise) -> None:
        pass


_NOBODY = _Nobody()
