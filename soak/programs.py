"""Random programs: how they are made, and how they run, with threads or with asyncio's tasks.

There is one interpreter for both, written with `async`. For the synchronous client nothing in it
ever waits, and a thread drives it to its end in one step; `Threads` and `Tasks` are where the
two differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import redis.asyncio.retry
import redis.retry
from redis.backoff import AbstractBackoff, ConstantBackoff, NoBackoff

import autobatch
import autobatch.asyncio
from autobatch.future import AsyncFuture, Future
from soak.chaos import PATIENCE, Blow, Chaos, draw_blows
from soak.model import Call, Kind, Outcome

SCRIPT = "return {ARGV[1], redis.call('RPUSH', KEYS[1], ARGV[1])}"
SERVER_OF = (0, 1, 0)  # of each client: two of them have a server in common


@dataclasses.dataclass(frozen=True)
class Do:
    """Make a call; `eager` through the plain view, which sends what waits first."""

    kind: Kind
    client: int
    shared: bool
    eager: bool = False


@dataclasses.dataclass(frozen=True)
class Look:
    """Need the value of an earlier call of this actor; it may raise its error."""

    back: int
    raises: bool


@dataclasses.dataclass(frozen=True)
class Flush:
    """Send what waits."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A scope around some steps; `fails` ends it by an exception."""

    steps: tuple[Step, ...]
    join: bool
    atomic: bool
    discard: bool
    fails: bool
    max_commands: int


@dataclasses.dataclass(frozen=True)
class Together:
    """Several actors at once, in the scope around them."""

    parts: tuple[tuple[Step, ...], ...]


Step: TypeAlias = Do | Look | Flush | Block | Together


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, the clients' settings, and what will befall it."""

    tasks: bool
    actors: tuple[tuple[Step, ...], ...]
    options: dict[str, Any]
    retries: int
    backoff: AbstractBackoff
    delay: float
    blows: list[Blow]


def draw(seed: int) -> Program:
    """Make a program."""
    rng = random.Random(seed)
    tasks = rng.random() < 0.5
    blows = draw_blows(rng, tasks=tasks)
    options = {
        "decode_responses": True,
        "protocol": rng.choice([2, 3]),
        # Where nothing is lost, nothing may time out on a busy machine either.
        "socket_timeout": rng.uniform(0.01, 0.06) if blows else PATIENCE,
    }
    if tasks:
        options["lanes"] = rng.choice([1, 1, 2])
    return Program(
        tasks,
        tuple(_steps(rng, rng.randrange(1, 10)) for _ in range(rng.choice([1, 1, 2, 3, 4]))),
        options,
        rng.choice([0, 1, 1, 2, 5]),
        rng.choice([NoBackoff(), ConstantBackoff(0.005)]),
        rng.choice([0, 0.0005]),
        blows,
    )


def _steps(
    rng: random.Random, count: int, depth: int = 0, *, held: bool = False
) -> tuple[Step, ...]:
    return tuple(_step(rng, depth, held=held) for _ in range(count))


def _step(rng: random.Random, depth: int, *, held: bool) -> Step:
    what = rng.random()
    if held or what < 0.5 + depth / 10:
        # In a MULTI, what one client calls comes before what another one calls.
        client = rng.choices([0, 1, 2], [6, 3, 0 if held else 1])[0]
        eager = not held and rng.random() < 0.05
        return Do(rng.choice(list(Kind)), client, rng.random() < 0.5, eager)
    if what < 0.6 + depth / 10:
        return Look(rng.randrange(6), raises=depth > 0 and rng.random() < 0.2)
    if what < 0.65 + depth / 10:
        return Flush()
    if what < 0.7 + depth / 10 and depth < 3:
        parts = [_steps(rng, rng.randrange(1, 6), depth + 1) for _ in range(rng.randrange(2, 4))]
        return Together(tuple(parts))
    atomic = rng.random() < 0.25
    steps = _steps(rng, rng.choice([2, 5, 10, 30]), depth + 2, held=atomic)
    return Block(
        steps if depth < 4 else steps[:3],
        join=rng.random() < 0.7,
        atomic=atomic,
        discard=rng.random() < 0.1,
        fails=rng.random() < 0.1,
        max_commands=rng.choice([3, 20, 10_000, 10_000, 10_000]),
    )


# The method of each kind of call, and its arguments.
_CALLS: dict[Kind, tuple[Any, ...]] = {
    Kind.PUSH: ("rpush", "key", "token"),
    Kind.RANGE: ("lrange", "key", 0, -1),
    Kind.SET: ("set", "key", "token"),
    Kind.GET: ("get", "key"),
    Kind.COUNT: ("incr", "key"),
    Kind.TOTAL: ("get", "key"),
    Kind.FIELD: ("hincrby", "key", "token", 1),
    Kind.WRONG: ("incr", "key"),
    Kind.ECHO: ("echo", "token"),
}


class Boom(Exception):
    """How a block fails."""


@dataclasses.dataclass
class Actor:
    """A thread or a task of a program.

    Attributes:
        calls: those it made, in order.
        scopes: how many blocks it is in.
        block: the atomic block that it is in.
        droppable: how many blocks around it may drop what is called in them.
    """

    number: int
    calls: list[Call] = dataclasses.field(default_factory=list)
    scopes: int = 0
    block: int | None = None
    droppable: int = 0


class Run:
    """One run of a program.

    Attributes:
        calls: all that were made.
        violations: what was seen to be wrong meanwhile.
    """

    def __init__(self, program: Program, prefix: str, chaos: Chaos) -> None:
        self.program = program
        self.chaos = chaos
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self._prefix = prefix
        self._numbers = itertools.count()
        self._ticks = itertools.count()
        self._clients: list[Any] = []
        self._scripts: list[Any] = []

    # ---- where threads and tasks differ ----------------------------------------------------

    def start(self) -> None:
        """Run it all."""
        raise NotImplementedError

    def make_client(self, port: int) -> Any:
        raise NotImplementedError

    def enter(self, boundary: Any) -> Any:
        """Return a boundary as an async context manager."""
        raise NotImplementedError

    async def wait(self, future: Any) -> None:
        """Wait for a Future; raise its error."""
        raise NotImplementedError

    async def flush(self) -> None:
        raise NotImplementedError

    async def together(self, parts: list[Coroutine[Any, Any, None]]) -> None:
        raise NotImplementedError

    # ---- the interpreter -------------------------------------------------------------------

    def connect(self) -> list[Any]:
        """Make the clients."""
        ports = [proxy.port for proxy in self.chaos.proxies]
        self._clients = [self.make_client(ports[server]) for server in SERVER_OF]
        self._scripts = [client.register_script(SCRIPT) for client in self._clients]
        return self._clients

    async def actor(self, steps: tuple[Step, ...], parent: Actor | None = None) -> None:
        """Be a new actor."""
        actor = Actor(next(self._numbers))
        if parent is not None:
            actor.scopes, actor.droppable = parent.scopes, parent.droppable
        with contextlib.suppress(redis.RedisError):  # of a look
            await self.steps(actor, steps)

    async def steps(self, actor: Actor, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case Do():
                    await self.do(actor, step)
                case Look():
                    await self.look(actor, step)
                case Flush():
                    await self.flush()
                case Block():
                    await self.block(actor, step)
                case Together():
                    await self.together([self.actor(part, actor) for part in step.parts])

    async def do(self, actor: Actor, step: Do) -> None:
        server = SERVER_OF[step.client]
        owner = "all" if step.shared else actor.number
        called = next(self._ticks)
        call = Call(
            kind=step.kind,
            server=server,
            key=f"{self._prefix}:{step.kind.family}:{owner}",
            token=f"{actor.number}.{called}",
            actor=actor.number,
            called=called,
            block=None if actor.block is None else (actor.block, step.client),
            droppable=actor.droppable > 0,
        )
        if step.kind is Kind.WRONG:
            call.key = f"{self._prefix}:wrong"
        self.calls.append(call)
        actor.calls.append(call)
        try:
            reply = self.invoke(step, call)
        except redis.RedisError as error:  # at once: outside a scope, or eager
            call.settle(None, error, next(self._ticks))
            call.looked = True
            return
        if type(reply) in _FUTURES:  # first, since isinstance() would force it
            call.future = reply
            if not actor.scopes:
                await self.known(call)
        elif asyncio.iscoroutine(reply):
            await self.step_aside(call, reply)
        else:
            call.settle(reply, None, next(self._ticks))

    def invoke(self, step: Do, call: Call) -> Any:
        client = self._clients[step.client]
        client = client.eager if step.eager else client
        if step.kind is Kind.SCRIPT:
            return self._scripts[step.client]([call.key], [call.token], client=client)
        method, *arguments = _CALLS[step.kind]
        given = {"key": call.key, "token": call.token}
        return getattr(client, method)(*(given.get(str(one), one) for one in arguments))

    async def step_aside(self, call: Call, coroutine: Any) -> None:
        call.outcome = Outcome.CANCELLED  # unless it comes to its end
        call.looked = True
        try:
            value = await coroutine
        except redis.RedisError as error:
            call.settle(None, error, next(self._ticks))
        else:
            call.settle(value, None, next(self._ticks))

    async def look(self, actor: Actor, step: Look) -> None:
        if step.back >= len(actor.calls):
            return
        call = actor.calls[-1 - step.back]
        if call.future is not None:
            await self.known(call, raises=step.raises)

    async def known(self, call: Call, *, raises: bool = False) -> None:
        """Wait until the outcome of a call is known, and note it."""
        call.looked = True
        try:
            await self.wait(call.future)
        except redis.RedisError:
            if raises:
                raise
        finally:
            self.note(call)

    def note(self, call: Call) -> None:
        """Note the outcome of a call, if there is one."""
        if call.future is not None and call.future.done():
            error = call.future.exception()
            value = None if error is not None else call.future.value
            call.settle(value, error, next(self._ticks))
            call.future = None

    async def block(self, actor: Actor, step: Block) -> None:
        own = not actor.scopes or not step.join
        first = len(actor.calls)
        boundary = autobatch.batch(
            join=step.join,
            atomic=step.atomic,
            on_error="discard" if step.discard else "flush",
            max_commands=step.max_commands,
        )
        outer = dataclasses.replace(actor)
        ended = False
        try:
            async with self.enter(boundary):
                actor.scopes += 1
                actor.droppable += step.atomic or step.discard
                actor.block = next(self._ticks) if step.atomic else None
                await self.steps(actor, step.steps)
                if step.fails:
                    raise Boom  # noqa: TRY301  # as a program's own code would
            ended = True
        except (Boom, redis.RedisError):
            pass
        finally:
            actor.scopes, actor.droppable, actor.block = outer.scopes, outer.droppable, outer.block
            if own:
                self.left(actor.calls[first:], ended=ended)

    def left(self, calls: list[Call], *, ended: bool) -> None:
        """Note what became of the calls of a scope that has been left.

        If it ended without an error, it had none to tell: of calls that nobody looked at.
        """
        for call in calls:
            looked, call.looked = call.looked, True
            self.note(call)
            if ended and call.future is not None:
                self.violations.append(f"its scope has ended, and it is not settled: {call}")
            elif ended and call.failed and not looked and not call.droppable:
                self.violations.append(f"nobody was told of its error: {call}")

    def finish(self) -> None:
        """Note what became of all other calls."""
        for call in self.calls:
            self.note(call)


class Threads(Run):
    """A program of the synchronous client."""

    def start(self) -> None:
        clients = self.connect()
        actors = [self.actor(steps) for steps in self.program.actors]
        _in_threads([functools.partial(_drive, actor) for actor in actors])
        for client in clients:
            in_use = client.connection_pool._in_use_connections  # noqa: SLF001
            if in_use:
                self.violations.append(f"the pool misses {in_use}")
            client.close()

    def make_client(self, port: int) -> Any:
        program = self.program
        retry = redis.retry.Retry(program.backoff, program.retries)
        return autobatch.Redis(port=port, retry=retry, **program.options)

    @contextlib.asynccontextmanager
    async def enter(self, boundary: Any) -> AsyncIterator[None]:
        with boundary:
            yield

    async def wait(self, future: Any) -> None:
        future.value  # noqa: B018  # forces it

    async def flush(self) -> None:
        autobatch.flush()

    async def together(self, parts: list[Coroutine[Any, Any, None]]) -> None:
        _in_threads([functools.partial(contextvars.copy_context().run, _drive, p) for p in parts])


class Tasks(Run):
    """A program of the asyncio client."""

    def start(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._reported)
        clients = self.connect()
        tasks = [asyncio.create_task(self.actor(steps)) for steps in self.program.actors]

        def cancel(number: int) -> bool:
            task = tasks[number % len(tasks)]
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)
            return not task.done()

        self.chaos.cancel = cancel
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, asyncio.CancelledError
            ):
                raise outcome
        for client in clients:
            await client.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=PATIENCE)
        if left:
            self.violations.append(f"tasks are left: {left}")

    def _reported(self, _: object, context: dict[str, Any]) -> None:
        """Nobody may hear of anything but errors of calls whose task was cancelled."""
        if not isinstance(context.get("exception"), redis.RedisError):
            self.violations.append(f"the loop was told: {context}")

    def make_client(self, port: int) -> Any:
        program = self.program
        retry = redis.asyncio.retry.Retry(program.backoff, program.retries)
        return autobatch.asyncio.Redis(port=port, retry=retry, **program.options)

    def enter(self, boundary: Any) -> Any:
        return boundary

    async def wait(self, future: Any) -> None:
        await future

    async def flush(self) -> None:
        await autobatch.asyncio.flush()

    async def together(self, parts: list[Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*parts)


_FUTURES = (Future, AsyncFuture)


def _drive(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def _in_threads(functions: list[Callable[[], None]]) -> None:
    """Run functions in threads of their own; raise an error of theirs."""
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
