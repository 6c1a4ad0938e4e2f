"""`batch` as decorator and context manager: what is called inside is sent once, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import logging
import threading
import warnings

import pytest
import redis

import autobatch
from autobatch.ambient import current, open_scope
from autobatch.errors import NotSent
from autobatch.testing import Hold, Proxy
from common import PATIENCE, connect, meanwhile

SET = [["SET"]]


@pytest.fixture
def threads(client):
    """The threads that settled a SET: its response callback runs where the flush does."""
    seen = set()
    plain = client.response_callbacks["SET"]

    def callback(reply, **options):
        seen.add(threading.get_ident())
        return plain(reply, **options)

    client.set_response_callback("SET", callback)
    return seen


# ---- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"on_error": None}, "on_error"),
        ({"max_commands": 0}, "max_commands"),
        ({"max_commands": -1}, "max_commands"),
        ({"max_bytes": 0}, "max_bytes"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        autobatch.batch(**options)


def test_a_decorated_function_keeps_its_name_and_kind():
    @autobatch.batch
    def function(key: str) -> int:
        """Documented."""

    @autobatch.batch()
    async def coroutine():
        pass

    @autobatch.batch
    def generator():
        yield

    @autobatch.batch
    async def async_generator():
        yield

    assert (function.__name__, function.__doc__) == ("function", "Documented.")
    assert str(inspect.signature(function)) == "(key: 'str') -> 'int'"
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)


# ---- functions and blocks --------------------------------------------------------------


def test_a_decorated_function_is_a_scope(client, proxy):
    """With and without parentheses; a method too, and a class's."""

    class Store:
        @autobatch.batch
        def save(self, value):
            client.set("k", value)
            return client.get("k")

        @classmethod
        @autobatch.batch()
        def load(cls):
            return client.get("k")

        @staticmethod
        @autobatch.batch(max_commands=5)
        def drop():
            return client.delete("k")

    assert [Store().save("v"), Store.load(), Store.drop()] == ["v", "v", 1]
    assert proxy.names == [["SET", "GET"], ["GET"], ["DEL"]]


@pytest.mark.parametrize("thing", ["a name", property(len), classmethod(len), threading.Thread])
def test_it_decorates_functions_alone(thing):
    """What stands above a decorator, or is no function at all, is refused where it is given."""
    with pytest.raises(TypeError, match="batch decorates functions and methods"):
        autobatch.batch(thing)


def test_a_client_is_no_argument(client):
    """A scope is that of all clients."""
    with pytest.raises(TypeError, match="takes no client"):
        autobatch.batch(client)


def test_decorated_functions_join_the_scope_around_them(client, proxy):
    @autobatch.batch
    def inner(key):
        return client.get(key)

    @autobatch.batch
    def outer():
        return inner("a"), inner("b"), client.get("c")

    outer()
    assert proxy.names == [["GET"] * 3]


def test_a_recursive_function_is_one_scope(client, proxy):
    @autobatch.batch
    def count(depth):
        client.incr("n")
        return count(depth - 1) if depth else client.get("n")

    assert count(3) == "4"
    assert proxy.names == [["INCRBY"] * 4 + ["GET"]]


def test_a_decorated_function_that_does_not_join(client, proxy):
    @autobatch.batch(join=False)
    def apart():
        return client.get("k")

    with autobatch.batch():
        client.set("k", 1)
        value = apart()
        assert value.done()
        client.delete("k")
    assert proxy.names == [["SET"], ["GET"], ["DEL"]]


def test_a_block_that_raises_sends_what_waits(client, proxy, plain):
    with pytest.raises(LookupError), autobatch.batch():
        client.set("k", 1)
        raise LookupError
    assert proxy.names == SET
    assert current() is None


def test_a_function_that_returns_early_sends_what_waits(client, proxy):
    @autobatch.batch
    def early():
        client.set("k", 1)
        for key in ("k", "other"):
            with autobatch.batch():
                if key:
                    return client.get(key)
        return None

    assert early() == "1"
    assert proxy.names == [["SET", "GET"]]


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_function_that_raises_sends_what_waits(error, client, proxy):
    @autobatch.batch
    def fail():
        client.set("k", 1)
        raise error

    with pytest.raises(error):
        fail()
    assert proxy.names == SET
    assert current() is None


def test_the_scope_ends_though_its_errors_surface(client, plain):
    """The ambient scope is the one before, whatever the end of a block raises."""
    plain.set("text", "no list")
    with autobatch.batch(join=False) as outer:
        with pytest.raises(redis.ResponseError), autobatch.batch(join=False):
            client.lpush("text", 1)
        assert current() is outer
    assert current() is None


def test_one_boundary_serves_many_blocks(client, proxy):
    """The same object, one after the other and nested in itself."""
    boundary = autobatch.batch(join=False)
    with boundary:
        client.set("k", 1)
        with boundary:
            client.set("k", 2)
        client.set("k", 3)
    with boundary:
        client.set("k", 4)
    assert proxy.names == SET * 4


def test_one_boundary_serves_many_threads(client):
    """Blocks of one object that overlap in two threads are two scopes."""
    boundary = autobatch.batch()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def enter_first_and_leave_first():
        with boundary as scope:
            future = client.incr("n")
            first_is_in.set()
            assert second_is_in.wait(PATIENCE)
            assert current() is scope
        first_is_out.set()
        assert future.done()
        assert current() is None

    def enter_second_and_leave_second():
        assert first_is_in.wait(PATIENCE)
        with boundary as scope:
            second_is_in.set()
            assert first_is_out.wait(PATIENCE)
            assert current() is scope
            assert not scope.closed

    with meanwhile(enter_second_and_leave_second), meanwhile(enter_first_and_leave_first):
        pass


# ---- on_error="discard" ----------------------------------------------------------------


def test_a_discarding_block_that_raises_sends_nothing(client, proxy):
    with pytest.raises(LookupError), autobatch.batch(on_error="discard"):
        future = client.set("k", 1)
        raise LookupError
    assert proxy.round_trips == 0
    assert isinstance(future.exception(), NotSent)
    assert "its scope was discarded" in str(future.exception())


def test_a_discarding_block_that_ends_well_sends_all(client, proxy):
    with autobatch.batch(on_error="discard"):
        future = client.set("k", 1)
    assert future.value is True


def test_a_discarding_block_drops_its_own_commands_only(client, proxy):
    with autobatch.batch() as scope:
        client.set("before", 1)
        with pytest.raises(LookupError), autobatch.batch(on_error="discard"):
            dropped = client.set("dropped", 1)
            raise LookupError
        client.set("after", 1)
    assert proxy.exchanges == [[(b"SET", b"before", b"1"), (b"SET", b"after", b"1")]]
    with pytest.raises(NotSent, match="its block was ended by LookupError"):
        dropped.value
    assert scope.stats.commands == 3


def test_a_discarding_block_keeps_what_was_sent(client, proxy):
    """What was forced in it has happened."""
    with pytest.raises(LookupError), autobatch.batch(), autobatch.batch(on_error="discard"):
        sent = client.incr("n")
        assert sent == 1
        dropped = client.incr("n")
        raise LookupError
    assert proxy.names == [["INCRBY"]]
    assert sent == 1
    assert isinstance(dropped.exception(), NotSent)


@pytest.mark.parametrize("fails", ["inner", "outer"])
def test_a_discarding_block_in_a_discarding_block(fails, client, proxy, plain):
    """The inner one takes its own commands along, the outer one all of them."""
    with pytest.raises(LookupError), autobatch.batch(on_error="discard"):
        outer = client.set("outer", 1)
        with contextlib.suppress(LookupError), autobatch.batch(on_error="discard"):
            inner = client.set("inner", 1)
            if fails == "inner":
                raise LookupError
        if fails == "inner":
            assert outer.value is True
        raise LookupError
    assert plain.keys() == (["outer"] if fails == "inner" else [])
    assert isinstance(inner.exception(), NotSent)


def test_discard_in_an_inner_block_is_its_own(client, proxy):
    with autobatch.batch():
        client.set("outer", 1)
        with autobatch.batch(on_error="discard") as inner:
            dropped = client.set("inner", 1)
            inner.discard()
            client.set("later", 1)
    assert proxy.exchanges == [[(b"SET", b"outer", b"1"), (b"SET", b"later", b"1")]]
    assert isinstance(dropped.exception(), NotSent)


def test_dropped_commands_do_not_surface(client):
    """The program's own error is the only one, without notes."""
    with pytest.raises(LookupError) as raised, autobatch.batch(on_error="discard"):
        client.set("k", 1)
        raise LookupError
    assert not hasattr(raised.value, "__notes__")


# ---- generators ------------------------------------------------------------------------


@pytest.fixture
def steps(client):
    """A generator function that sets a key a step, and one more when it is closed."""

    @autobatch.batch
    def steps():
        try:
            for number in range(3):
                client.set(f"k{number}", 1)
                yield open_scope()
        finally:
            client.set("closing", 1)

    return steps


def test_a_generator_is_one_scope_that_its_consumer_never_sees(steps, client, proxy):
    """Between its steps the consumer has its own scope, or none."""
    seen = []
    for scope in steps():
        seen.append(scope)
        assert current() is None
        client.incr("consumer")
    assert seen[0] is seen[1] is seen[2]
    assert seen[0].closed
    assert proxy.names == [["INCRBY"]] * 3 + [["SET"] * 4]


def test_two_generators_that_take_turns_keep_their_scopes_apart(steps):
    one, two = steps(), steps()
    pairs = list(zip(one, two, strict=True))
    assert len({id(scope) for pair in pairs for scope in pair}) == 2
    assert current() is None


def test_a_generator_may_run_in_the_middle_of_a_scope(steps, client, proxy):
    """It was started outside of it, so it keeps its own; the consumer's is the same after."""
    generator = steps()
    own = next(generator)
    with autobatch.batch() as scope:
        client.incr("consumer")
        assert next(generator) is own
        assert current() is scope
        client.incr("consumer")
    generator.close()
    assert proxy.names == [["INCRBY"] * 2, ["SET"] * 3]


def test_a_generator_joins_the_scope_it_is_used_in(steps, client, proxy):
    with autobatch.batch() as scope:
        assert list(steps()) == [scope] * 3
        client.incr("consumer")
    assert proxy.names == [["SET"] * 4 + ["INCRBY"]]


def test_a_generator_passes_values_errors_and_its_result(client, proxy):
    @autobatch.batch
    def echo():
        got = yield client.incr("n")
        try:
            yield got
        except LookupError as error:
            got = yield error
        return got

    generator = echo()
    assert next(generator) == 1
    assert generator.send("sent") == "sent"
    error = LookupError()
    assert generator.throw(error) is error
    with pytest.raises(StopIteration) as stop:
        generator.send("result")
    assert stop.value.value == "result"
    assert current() is None


def test_yield_from_a_decorated_generator(steps, proxy):
    @autobatch.batch
    def outer():
        yield from steps()

    assert len(list(outer())) == 3
    assert proxy.names == [["SET"] * 4]


def close_early(generator):
    generator.close()


def throw_into(generator):
    with pytest.raises(LookupError):
        generator.throw(LookupError())


def drop(generator):
    pass  # the caller drops it, too


def drop_in_a_cycle(generator):
    cycle = [generator]
    cycle.append(cycle)


@pytest.mark.parametrize("end", [close_early, throw_into, drop, drop_in_a_cycle])
def test_a_generator_that_ends_early_sends_what_waits(end, steps, proxy):
    generator = steps()
    next(generator)
    end(generator)
    del generator
    gc.collect()
    assert proxy.exchanges == [[(b"SET", b"k0", b"1"), (b"SET", b"closing", b"1")]]
    assert current() is None


def test_a_generator_that_is_closed_raises_what_nobody_saw(client, plain):
    plain.set("text", "no list")

    @autobatch.batch
    def fail():
        yield client.lpush("text", 1)

    generator = fail()
    next(generator)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        generator.close()


def test_a_generator_that_goes_on_after_close_is_an_error(client, proxy):
    @autobatch.batch
    def stubborn():
        with contextlib.suppress(GeneratorExit):
            yield client.set("k", 1)
        yield client.set("k", 2)

    generator = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()
    assert proxy.names == [["SET"] * 2]
    assert current() is None


def test_a_generator_that_never_started_sends_nothing(steps, proxy):
    generator = steps()
    generator.close()
    assert proxy.round_trips == 0


def test_a_generator_may_change_threads(steps, proxy):
    """Each step runs in the context it is asked from, as a server's thread pool does."""
    generator = steps()
    own = next(generator)
    with meanwhile(lambda: contextvars.copy_context().run(next, generator)):
        pass
    assert next(generator) is own
    with pytest.raises(StopIteration):
        next(generator)
    assert proxy.names == [["SET"] * 4]


@pytest.mark.parametrize("options", [{"atomic": True}, {"on_error": "discard"}], ids=str)
def test_a_generator_that_fails_drops_its_block(options, client, proxy):
    @autobatch.batch(**options)
    def fail():
        yield client.set("k", 1)
        raise LookupError

    generator = fail()
    dropped = next(generator)
    with pytest.raises(LookupError):
        next(generator)
    assert proxy.round_trips == 0
    assert isinstance(dropped.exception(), NotSent)


def test_a_generator_that_outlives_the_scope_it_joined_raises_its_errors_itself(client, plain):
    """The scope around it has ended, so nobody else would."""
    plain.set("text", "no list")

    @autobatch.batch(atomic=True)
    def late():
        yield client.lpush("text", 1)

    with autobatch.batch():
        generator = late()
        next(generator)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        generator.close()


# ---- asyncio: the scope's flushes leave the loop alone ------------------------------------


async def decorated(body, **options):
    await autobatch.batch(**options)(body)()


async def block(body, **options):
    async with autobatch.batch(**options):
        await body()


async def async_generator(body, **options):
    @autobatch.batch(**options)
    async def generate():
        await body()
        yield

    async for _ in generate():
        pass


KINDS = [{}, {"atomic": True}, {"join": False}, {"on_error": "discard"}]
async_ways = pytest.mark.parametrize("way", [decorated, block, async_generator])


@async_ways
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_an_async_scope_flushes_in_a_thread(way, options, client, proxy, threads):
    async def body():
        client.set("k", 1)
        client.set("k", 2)

    asyncio.run(way(body, **options))
    assert len(proxy.names) == 1
    assert proxy.names[0].count("SET") == 2
    assert threading.get_ident() not in threads
    assert len(threads) == 1


@async_ways
def test_an_async_scope_that_opens_inside_another_flushes_it_in_a_thread(way, client, threads):
    async def body():
        client.set("inner", 1)

    async def outer():
        async with autobatch.batch():
            client.set("outer", 1)
            await way(body, join=False)

    asyncio.run(outer())
    assert threading.get_ident() not in threads


@async_ways
def test_an_async_scope_that_raises_sends_what_waits(way, client, proxy):
    async def body():
        client.set("k", 1)
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(way(body))
    assert proxy.names == SET


@async_ways
def test_an_async_scope_raises_what_nobody_saw(way, client, plain):
    plain.set("text", "no list")

    async def body():
        client.lpush("text", 1)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        asyncio.run(way(body))


@async_ways
def test_an_async_scope_that_is_cancelled_sends_what_waits(way, client, proxy, plain, caplog):
    """Nobody sees notes of a CancelledError, so errors that nobody has seen are logged."""
    plain.set("text", "no list")

    async def body():
        client.set("k", 1)
        client.lpush("text", 1)
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(way(body))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert not hasattr(raised.value, "__notes__")

    with caplog.at_level(logging.ERROR, "autobatch"):
        asyncio.run(main())
    assert proxy.names == [["SET", "LPUSH"]]
    [message] = caplog.messages
    assert "unseen error" in message
    assert "LPUSH text, queued at" in message


@async_ways
def test_a_second_cancellation_does_not_stop_the_flush(way, server, plain, caplog):
    """It is on its way in a thread; what it finds wrong is logged."""
    plain.set("text", "no list")
    hold = Hold()

    async def main():
        async def body():
            client.set("k", 1)
            client.lpush("text", 1)

        task = asyncio.create_task(way(body))
        await asyncio.to_thread(hold.replied.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hold.released.set()

    with Proxy(server, delay=0) as proxy, connect(proxy.port) as client:
        proxy.arm(hold)
        with caplog.at_level(logging.ERROR, "autobatch"):
            asyncio.run(main())  # it ends when its threads have
        assert proxy.names == [["SET", "LPUSH"]]
    assert plain.get("k") == "1"
    assert "LPUSH text, queued at" in caplog.text


def test_aflush_flushes_in_a_thread(client, proxy, threads):
    async def main():
        async with autobatch.batch() as scope:
            future = client.set("k", 1)
            await scope.aflush()
            assert future.done()
            await scope.aflush()

    asyncio.run(main())
    assert proxy.names == SET
    assert threading.get_ident() not in threads


def test_tasks_share_the_scope_they_are_started_in(client, proxy):
    async def task(key):
        client.set(key, 1)

    async def main():
        async with autobatch.batch():
            await asyncio.gather(*[task(f"k{number}") for number in range(5)])

    asyncio.run(main())
    assert proxy.names == [["SET"] * 5]


def test_tasks_with_a_scope_each_do_not_mix(client, proxy):
    @autobatch.batch
    async def task(number):
        client.set(f"k{number}", number)
        await asyncio.sleep(0)
        return client.get(f"k{number}")

    async def main():
        return await asyncio.gather(*[task(number) for number in range(5)])

    assert [int(value) for value in asyncio.run(main())] == list(range(5))
    assert sorted(proxy.names) == [["SET", "GET"]] * 5


def test_a_task_that_outlives_its_scope_runs_its_commands_at_once(client, proxy):
    async def late(ended):
        await ended.wait()
        return await asyncio.to_thread(lambda: type(client.incr("n")))

    async def main():
        ended = asyncio.Event()
        async with autobatch.batch():
            client.set("k", 1)
            task = asyncio.create_task(late(ended))
        ended.set()
        return await task

    assert asyncio.run(main()) is int
    assert proxy.names == [["SET"], ["INCRBY"]]


def test_a_force_on_the_loop_works_and_warns_once_a_line(client):
    async def main():
        async with autobatch.batch():
            return [client.incr("n") + 0 for _ in range(3)]

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        assert asyncio.run(main()) == [1, 2, 3]
    [warning] = warned
    assert warning.category is autobatch.errors.BlockingFlushWarning
    assert warning.filename == __file__
    assert "flushed on a thread that runs an event loop" in str(warning.message)


# ---- asyncio: generators ---------------------------------------------------------------


@pytest.fixture
def async_steps(client):
    @autobatch.batch
    async def steps():
        try:
            for number in range(3):
                client.set(f"k{number}", 1)
                await asyncio.sleep(0)
                yield open_scope()
        finally:
            client.set("closing", 1)

    return steps


def test_an_async_generator_is_one_scope_that_its_consumer_never_sees(async_steps, proxy):
    async def main():
        seen = []
        async for scope in async_steps():
            seen.append(scope)
            assert current() is None
        assert seen[0] is seen[1] is seen[2]

    asyncio.run(main())
    assert proxy.names == [["SET"] * 4]


def test_an_async_generator_passes_values_and_errors(client):
    @autobatch.batch
    async def echo():
        got = yield 1
        try:
            yield got
        except LookupError as error:
            yield error

    async def main():
        generator = echo()
        error = LookupError()
        assert await anext(generator) == 1
        assert await generator.asend("sent") == "sent"
        assert await generator.athrow(error) is error
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        assert current() is None

    asyncio.run(main())


async def aclose_early(generator):
    await generator.aclose()


async def athrow_into(generator):
    with pytest.raises(LookupError):
        await generator.athrow(LookupError())


async def leave_to_the_loop(generator):
    pass  # asyncio.run closes what is left


@pytest.mark.parametrize("end", [aclose_early, athrow_into, leave_to_the_loop])
def test_an_async_generator_that_ends_early_sends_what_waits(end, async_steps, proxy, threads):
    async def main():
        generator = async_steps()
        await anext(generator)
        await end(generator)

    asyncio.run(main())
    assert proxy.exchanges == [[(b"SET", b"k0", b"1"), (b"SET", b"closing", b"1")]]
    assert threading.get_ident() not in threads


def test_an_async_generator_may_change_tasks(async_steps, proxy):
    """Each step may be asked for by another task, as a server's middlewares do."""

    async def main():
        generator = async_steps()
        scopes = [await asyncio.create_task(generator.__anext__()) for _ in range(3)]
        assert scopes[0] is scopes[1] is scopes[2]
        with pytest.raises(StopAsyncIteration):
            await asyncio.create_task(generator.__anext__())

    asyncio.run(main())
    assert proxy.names == [["SET"] * 4]
