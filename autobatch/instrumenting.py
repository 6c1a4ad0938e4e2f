"""`instrument`: the clients that a program has already batch inside scopes, without an edit.

Methods of redis-py's own classes are replaced, so it does not matter who made a client, when, how
(`from_url`, Sentinel, a module that has said `from redis import Redis`) or of which subclass; its
type stays what it was. Outside a scope the method that was there runs, and nothing else. Inside one
the call goes to a view of the client: an object of the batching class that shares the client's
attributes, and is gone when the call returns. Nothing is kept on a client but its wire, and with
asyncio which of its callbacks are coroutine functions, so there is nothing to undo there.

Whether a call is batched depends on the module that makes it: that is who will look at the reply.
Libraries that test replies with `is None`, or give them to pickle or json, get plain values, as
from `client.eager`: what waits is sent first, so the order of the program holds.
"""

from __future__ import annotations

import enum
import functools
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from types import FrameType
from typing import Any, Self

from autobatch.ambient import Scope, current
from autobatch.aside import aside, aside_module
from autobatch.funnel import Funnel, twin_class
from autobatch.future import AsyncFuture
from autobatch.scope import step_aside
from autobatch.switch import is_set
from autobatch.wrapping import pipelines, twins

# Libraries that look at each reply at once, and in a way that a Future does not answer: `is None`,
# pickle, json. Batching has nothing to give them.
EXCLUDED = (
    "apscheduler",
    "aredis_om",
    "beaker",
    "cachelib",
    "celery",
    "django.core.cache",
    "django_redis",
    "dogpile",
    "dramatiq",
    "flask_caching",
    "flask_session",
    "huey",
    "kombu",
    "redbeat",
    "redis_om",
    "rq",
    "walrus",
)


class Way(enum.Enum):
    """What becomes of a call inside a scope."""

    BATCHED = "batched"
    APART = "apart"
    """At once, after what waits, with a plain value."""
    PLAIN = "plain"
    """At once, as if there was no scope."""
    FURTHER = "further"
    """Whoever has called this module decides."""


# The most specific name decides.
_WAYS = {
    # redis-py itself. Its clusters and Sentinels find out where they are by clients of their own.
    "redis": Way.FURTHER,
    "redis._parsers": Way.PLAIN,
    "redis.asyncio.cluster": Way.PLAIN,
    "redis.asyncio.lock": Way.APART,
    "redis.asyncio.multidb": Way.APART,
    "redis.asyncio.sentinel": Way.PLAIN,
    "redis.cluster": Way.PLAIN,
    "redis.lock": Way.APART,
    "redis.multidb": Way.APART,
    "redis.sentinel": Way.PLAIN,
    "autobatch": Way.FURTHER,
    # valkey-py, a fork of it.
    "valkey": Way.FURTHER,
    "valkey._parsers": Way.PLAIN,
    "valkey.asyncio.cluster": Way.PLAIN,
    "valkey.asyncio.lock": Way.APART,
    "valkey.asyncio.sentinel": Way.PLAIN,
    "valkey.cluster": Way.PLAIN,
    "valkey.lock": Way.APART,
    "valkey.sentinel": Way.PLAIN,
    # They stand between a call and redis-py, and only watch.
    "ddtrace": Way.FURTHER,
    "elasticapm": Way.FURTHER,
    "newrelic": Way.FURTHER,
    "opentelemetry": Way.FURTHER,
    "sentry_sdk": Way.FURTHER,
    "wrapt": Way.FURTHER,
}


class _Modules(dict[str, Way]):
    """What becomes of the calls of each module, found out once."""

    def __init__(self, exclude: Iterable[str], include: Iterable[str]) -> None:
        super().__init__()
        for names in (exclude, include):
            if isinstance(names, str):  # whose letters would be taken for modules
                raise TypeError(f"exclude and include take lists of names: [{names!r}]")
        batched = dict.fromkeys(include, Way.BATCHED)
        excluded = dict.fromkeys((*EXCLUDED, *exclude), Way.APART)
        self._rules = {**_WAYS, **excluded, **batched}
        self._otherwise = Way.APART if batched else Way.BATCHED

    def __missing__(self, module: str) -> Way:
        name = module
        while name and name not in self._rules:
            name = name.rpartition(".")[0]
        way = self[module] = self._rules.get(name, self._otherwise)
        return way

    def way_of(self, frame: FrameType | None) -> Way:
        """Return what becomes of a call that `frame` makes."""
        while frame is not None:
            way = self[frame.f_globals.get("__name__", "")]
            if way is not Way.FURTHER:
                return way
            frame = frame.f_back
        return self._otherwise


_modules: _Modules | None = None
_changing = threading.RLock()
# What was replaced: by class and name, what there is now and what was there of its own.
_replaced: dict[tuple[type, str], tuple[Any, Any]] = {}
_INHERITED = object()


class Instrumentation:
    """What `instrument` returns: as a context manager, it ends with the block."""

    def __init__(self, before: _Modules | None) -> None:
        self._before = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _switch(self._before)


def instrument(*, exclude: Iterable[str] = (), include: Iterable[str] = ()) -> Instrumentation:
    """Make the clients of redis-py batch inside scopes, whoever has made them, and when.

    It holds for `redis.Redis`, `redis.RedisCluster`, their asyncio twins and subclasses, and for
    what `wrap` takes of valkey-py if that is imported before. They keep their types; outside a
    scope they do exactly what they did. The module that calls a client decides: calls of excluded
    modules run at once, after what waits was sent, and return plain values. Excluded by default are
    the libraries in `autobatch.instrumenting.EXCLUDED`. It may be called again, by any thread: the
    last call's arguments hold.

    Args:
        exclude: more modules whose calls are not batched, with all that is inside of them.
        include: modules whose calls are batched. If there are any, only theirs are. A name that
            says more decides: `exclude=["shop"], include=["shop.views"]`.

    Returns:
        A context manager that ends it with its block, for tests. `uninstrument()` ends it, too.

    Raises:
        TypeError: `exclude` or `include` is a string.
    """
    return Instrumentation(_switch(_Modules(exclude, include)))


def uninstrument() -> None:
    """Make redis-py's clients what they were before `instrument`, however often that was called.

    What waits in open scopes is sent as usual.
    """
    _switch(None)


def from_environment() -> None:
    """Instrument if the environment variable AUTOBATCH_INSTRUMENT says so."""
    if is_set("AUTOBATCH_INSTRUMENT"):
        instrument()


def _switch(modules: _Modules | None) -> _Modules | None:
    """Let other rules hold, none for None; return those that held."""
    global _modules  # every replaced method looks at it
    with _changing:
        before, _modules = _modules, modules
        if modules is None:
            _put_back()
        else:  # again, too: valkey-py may have been imported since
            for kind, twin in twins().items():
                _replace(kind, twin)
    return before


def _replace(kind: type, twin: Any) -> None:
    for name, make in _METHODS.items():
        original = getattr(kind, name, None)
        # Somebody else's wrapper may be around ours still.
        if original is None or (kind, name) in _replaced or original is getattr(twin, name):
            continue
        asynchronous = issubclass(twin._future_type, AsyncFuture)
        method = make(original, getattr(twin, name), asynchronous=asynchronous)
        functools.update_wrapper(method, original)
        _replaced[kind, name] = method, vars(kind).get(name, _INHERITED)
        setattr(kind, name, method)


def _put_back() -> None:
    for (kind, name), (method, original) in list(_replaced.items()):
        if vars(kind).get(name) is not method:
            continue  # what replaced ours goes on to call it: it does nothing any more
        del _replaced[kind, name]
        if original is _INHERITED:
            delattr(kind, name)
        else:
            setattr(kind, name, original)


class _Views(dict[type, Any]):
    """The class of a client's views, by its own; None for what is no client, or batches itself."""

    def __missing__(self, kind: type) -> Any:
        view = self[kind] = None if issubclass(kind, (Funnel, *pipelines())) else _view_class(kind)
        return view


_views = _Views()


def _view_class(kind: type) -> Any:
    twin = next(twin for base, twin in twins().items() if issubclass(kind, base))
    members: dict[str, Any] = {"__module__": kind.__module__, "__slots__": ("_origin",)}
    for base in kind.__mro__:  # redis-py's asyncio client of a cluster has slots, too
        for name in vars(base).get("__slots__", ()):
            members[name] = _of_origin(name)
    return type(kind.__name__, (twin_class(kind, twin),), members)


def _of_origin(name: str) -> property:
    def get(view: Any) -> Any:
        return getattr(view._origin, name)

    def set_(view: Any, value: Any) -> None:
        setattr(view._origin, name, value)

    return property(get, set_)


def _view_of(client: Any) -> Any:
    """Return an object of the batching class that shares the attributes of a client."""
    view: Any = object.__new__(_views[type(client)])
    view.__dict__ = client.__dict__
    view._origin = client
    return view


def _is_client(thing: Any) -> bool:
    return _modules is not None and _views[type(thing)] is not None


# ---- what the methods become -----------------------------------------------------------------


def _in_scopes(original: Any, batched: Any, *, asynchronous: bool) -> Any:
    """What is batched in a scope."""
    apart = _apart_in_loop if asynchronous else _apart

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current()
        modules = _modules
        if (
            scope is None
            or (scope.closed and not scope.hears)
            or modules is None
            or _views[type(self)] is None
        ):
            return original(self, *args, **kwargs)
        try:
            caller = sys._getframe(1)  # public in all but name
        except ValueError:  # a thread or a greenlet that starts in redis-py
            caller = None
        way = modules.way_of(caller)
        if way is Way.BATCHED:
            return batched(_view_of(self), *args, **kwargs)
        call = functools.partial(original, self, *args, **kwargs)
        return call() if way is Way.PLAIN else apart(scope, call)

    return method


def _apart(scope: Scope, call: Callable[[], Any]) -> Any:
    scope.step_aside()
    return call()


async def _apart_in_loop(scope: Scope, call: Callable[[], Awaitable[Any]]) -> Any:
    await scope.astep_aside()
    return await call()


def _making(step_aside_with: Callable[[Any], Any]) -> Callable[..., Any]:
    """What takes a connection, or makes what does: it flushes first what waits."""

    def replace(original: Any, *_: Any, **__: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(self, *args, **kwargs)
            return step_aside_with(made) if _is_client(self) else made

        return method

    return replace


def _register_script(original: Any, *_: Any, **__: Any) -> Any:
    def register_script(self: Any, script: Any) -> Any:
        if _is_client(self):
            _view_of(self)._know_script(script)
        return original(self, script)

    return register_script


def _set_response_callback(original: Any, batched: Any, **__: Any) -> Any:
    def set_response_callback(self: Any, command: str, callback: Any) -> Any:
        of = _view_of(self) if _is_client(self) else self
        return (original if of is self else batched)(of, command, callback)

    return set_response_callback


def _close(original: Any, *_: Any, **__: Any) -> Any:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe().f_back  # none where atexit calls
        # The garbage collector must not flush.
        if _is_client(self) and (caller is None or caller.f_code.co_name != "__del__"):
            step_aside()
        return original(self, *args, **kwargs)

    return close


def _aclose(original: Any, *_: Any, **__: Any) -> Any:
    async def aclose(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_client(self):
            await _view_of(self)._take_leave()
        return await original(self, *args, **kwargs)

    return aclose


_METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        [
            "__getitem__",
            "delete",
            "execute_command",
            "exists",
            "mget_nonatomic",
            "mset_nonatomic",
            "touch",
            "unlink",
            "xread",
            "xreadgroup",
        ],
        _in_scopes,
    ),
    **dict.fromkeys(["monitor", "pipeline", "pubsub"], _making(aside)),
    **dict.fromkeys(["ft", "json", "ts"], _making(aside_module)),
    "aclose": _aclose,
    "close": _close,
    "register_script": _register_script,
    "set_response_callback": _set_response_callback,
}
