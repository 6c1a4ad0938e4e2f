"""Missed batches: what the advice says of real programs, and what following it gives."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import pathlib
import re

import pytest

import autobatch
from autobatch.advice import Kind, advise, possible
from common import connect
from recorded import recording

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "missed.py"
MARK = re.compile(r"# (early|N\+1|chain|dependency): ")
KINDS = {
    "early": Kind.EARLY,
    "N+1": Kind.LOOP,
    "chain": Kind.CHAIN,
    "dependency": Kind.DEPENDENCY,
}


@pytest.fixture
def missed(proxy, client, monkeypatch):
    """The example application, its data written, its clients behind the counting proxy."""
    monkeypatch.syspath_prepend(EXAMPLE.parent.parent)
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{proxy.port}")
    module = importlib.import_module("examples.missed")
    monkeypatch.setattr(module, "redis", client)
    module.fill()
    proxy.reset()
    return module


def marks(*functions):
    """Return the kind and the line of everything that is planted in some functions."""
    found = set()
    for function in functions:
        lines, first = inspect.getsourcelines(function)
        for number, line in enumerate(lines, first):
            match = MARK.search(line)
            if match is not None:
                found.add((KINDS[match[1]], number))
    return found


PLANTED = {
    "header": ["header"],
    "names": ["names"],
    "likes": ["likes_of"],
    "authors": ["authors"],
    "greeting": ["greeting"],
    "page": ["header", "page"],
    "aheader": ["aheader"],
    "anames": ["anames"],
    "aauthors": ["aauthor"],
    "aboth_headers": ["aheader"],
}


def recorded(work, proxy):
    """Run some work in a scope; return its result, its record, and its exchanges on the wire."""
    before = proxy.round_trips
    with recording() as records, autobatch.batch():
        result = work()
        if isinstance(result, list):
            result = [str(line) for line in result]
    (scope,) = records.scopes
    return result, scope, proxy.round_trips - before


@pytest.mark.parametrize("name", ["header", "names", "likes", "authors", "greeting", "page"])
def test_following_the_advice_gives_what_it_promises(missed, proxy, name):
    """Each planted line is named, and the mended function takes the round trips promised."""
    result, scope, now = recorded(getattr(missed, name), proxy)
    advices = advise(scope)
    hold_together(advices, scope, now)
    found = {(advice.kind, advice.place.line) for advice in advices}
    assert {advice.place.file for advice in advices} == {str(EXAMPLE)}
    planted = marks(*[getattr(missed, one) for one in PLANTED[name]])
    assert planted
    assert planted <= found
    if name != "page":  # where the last line of the header is early, too
        assert planted == found
    mended, _, after = recorded(getattr(missed, f"{name}_after"), proxy)
    assert mended == result
    assert after == possible(scope) < now


@pytest.mark.parametrize("name", ["aheader", "anames", "aauthors", "aboth_headers"])
def test_with_asyncio(missed, proxy, monkeypatch, name):
    """The same for coroutine functions."""

    async def run(work):
        client = autobatch.asyncio.Redis(port=proxy.port, decode_responses=True)
        monkeypatch.setattr(missed, "aredis", client)
        await client.ping()
        before = proxy.round_trips
        with recording() as records:
            async with autobatch.batch():
                result = await work()
        taken = proxy.round_trips - before
        await client.aclose()
        (scope,) = records.scopes
        return result, scope, taken

    result, scope, now = asyncio.run(run(getattr(missed, name)))
    advices = advise(scope)
    hold_together(advices, scope, now)
    found = {(advice.kind, advice.place.line) for advice in advices}
    assert found == marks(*[getattr(missed, one) for one in PLANTED[name]])
    mended, _, after = asyncio.run(run(getattr(missed, f"{name}_after")))
    assert mended == result
    assert after == possible(scope) < now


def hold_together(advices, scope, now):
    """The figures of the advices are a chain from what it took to what is possible."""
    assert scope.round_trips == now
    saving = [advice for advice in advices if advice.saved]
    assert [advice.round_trips for advice in saving] == [
        now,
        *[advice.possible for advice in saving[:-1]],
    ]
    assert possible(scope) == saving[-1].possible
    assert [advice.kind for advice in advices[len(saving) :]] == [Kind.DEPENDENCY] * (
        len(advices) - len(saving)
    )
    assert all(advice.certain for advice in advices)


def test_what_it_says(missed, proxy):
    """Which line forces what, what to do, and what it saves."""
    _, scope, _ = recorded(missed.header, proxy)
    first, _ = advise(scope)
    line = first.place.line
    assert str(first) == first.text
    assert first.text.endswith(
        f"missed.py:{line} forces 1 command; forced after line {line + 1} it would join the next "
        "flush: 3 round trips could be 2"
    )
    _, scope, _ = recorded(missed.names, proxy)
    (loop,) = advise(scope)
    line = loop.place.line
    assert loop.text.startswith("N+1 loop: ")
    assert loop.text.endswith(
        f"missed.py:{line} forces 5 commands, in 5 flushes (the loop of line {line - 2}); call "
        f"line {line - 1} for all turns first, then look at the values: "
        "5 round trips could be 1"
    )
    assert loop.times == 5


def test_nothing_to_say(missed, proxy):
    """Of what is mended, and of an empty scope."""
    for name in ("header", "names", "likes"):
        _, scope, _ = recorded(getattr(missed, f"{name}_after"), proxy)
        assert advise(scope) == []
        assert possible(scope) == scope.round_trips == 1
    _, scope, _ = recorded(lambda: None, proxy)
    assert advise(scope) == []
    assert possible(scope) == 0


# ---- one shape after the other: what is promised, and what takes as many round trips ----------


def advised(work, proxy):
    _, scope, now = recorded(work, proxy)
    advices = advise(scope)
    assert scope.round_trips == now
    return [(advice.kind, advice.saved) for advice in advices], possible(scope)


def test_a_branch_is_a_dependency(client, proxy, plain):
    plain.set("flag", "1")

    def work():
        if client.get("flag") == "1":
            client.incr("hits")

    assert advised(work, proxy) == ([(Kind.DEPENDENCY, 0)], 2)


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_a_helper_that_raises_is_a_dependency_of_what_writes(client, proxy, plain, caught, reads):
    """As one that limits rates: what is behind it must not happen. To read it does no harm."""

    def limit():
        if client.incr("calls") > 1000:
            raise ValueError

    def work():
        if caught:
            with contextlib.suppress(ValueError):
                limit()
        else:
            limit()
        bool(client.get("hits") if reads else client.incr("hits"))

    spared = [(Kind.EARLY, 1)], 1
    assert advised(work, proxy) == (spared if caught or reads else ([(Kind.DEPENDENCY, 0)], 2))


def test_a_branch_of_all_turns(client, proxy, plain):
    """The first commands of all turns can share a round trip, and so can the second."""
    plain.mset({"a": "1", "c": "1"})

    def work():
        for key in "abcd":
            if client.exists(key):
                client.get(key).value

    def after():
        found = [client.exists(key) for key in "abcd"]
        got = [client.get(key) for key, exists in zip("abcd", found, strict=True) if exists]
        return [value.value for value in got]

    _, scope, now = recorded(work, proxy)
    assert now == 6
    assert possible(scope) == 2
    assert recorded(after, proxy)[2] == 2


def test_what_a_turn_collects(client, proxy):
    """A comprehension in a loop is no dependency of its next turn."""

    def work():
        for number in range(3):
            both = [client.get(f"{key}:{number}") for key in "ab"]
            assert not both[0]

    def after():
        turns = [[client.get(f"{key}:{number}") for key in "ab"] for number in range(3)]
        assert not any(both[0] for both in turns)

    assert advised(work, proxy) == ([(Kind.LOOP, 2)], 1)
    assert recorded(after, proxy)[2] == 1


def test_the_first_that_will_do(client, proxy, plain):
    """Nobody may claim a second place before it is known that the first one is taken."""
    plain.mset({"place:0": 1, "place:1": 1})

    def work():
        return next(number for number in range(9) if client.setnx(f"place:{number}", 1))

    assert advised(work, proxy) == ([(Kind.DEPENDENCY, 0)], 3)
    assert not plain.exists("place:3")


def test_what_can_travel_with_turns_that_need_each_other(client, proxy):
    """Nobody is told to call for all turns first."""

    def work():
        for number in range(3):
            if client.incr(f"claims:{number}") > 1:
                break
        client.incr("hits")  # with any of them

    _, scope, _ = recorded(work, proxy)
    (advice,) = advise(scope)
    assert (advice.kind, advice.round_trips, advice.possible) == (Kind.EARLY, 4, 3)
    line = inspect.getsourcelines(work)[1] + 4
    assert f"forced after line {line} it would join" in advice.text


def test_a_line_is_named_once(server):
    """Also where two calls in it are awaited."""

    async def main():
        async with autobatch.asyncio.Redis(port=server) as client:
            with recording() as records:
                async with autobatch.batch():
                    await asyncio.gather(client.get("a"), client.get("b"))  # both
                    await client.incr("c")
        return records.scopes

    (advice,) = advise(asyncio.run(main())[0])
    assert (advice.kind, advice.possible) == (Kind.EARLY, 1)
    assert " and line" not in advice.text


def test_a_value_that_may_be_of_no_use(client, proxy, plain):
    """What comes after a `try` that ends the function otherwise depends on the value."""
    plain.set("page", "1")

    def work():
        try:
            page = int(client.get("page"))
        except ValueError:
            return None
        client.incr("hits")
        return page

    assert advised(work, proxy) == ([(Kind.DEPENDENCY, 0)], 2)


def test_a_loop_that_fills_what_the_next_one_takes(client, proxy, plain):
    """Only the last turn's value goes on at once: it is no chain."""

    def work():
        missing = [key for key in "abcd" if not client.exists(key)]
        return [int(client.incr(key)) for key in missing]

    def after():
        exist = [(key, client.exists(key)) for key in "abcd"]
        return [int(one) for one in [client.incr(key) for key, there in exist if not there]]

    assert advised(work, proxy) == ([(Kind.LOOP, 3), (Kind.LOOP, 3)], 2)
    plain.delete(*"abcd")
    assert recorded(after, proxy)[2] == 2


def test_a_loop_around_the_scope_is_none_of_its_loops(client, proxy):
    for _ in range(2):
        with recording() as records, autobatch.batch():
            sorted("abc", key=lambda key: client.get(key) or "")
        (advice,) = advise(records.scopes[0])
        assert (advice.kind, advice.round_trips, advice.possible) == (Kind.LOOP, 3, 1)
        assert "the loop of" not in advice.text
    with recording() as records, autobatch.batch():
        for key in "abc":
            bool(client.get(key))
    (advice,) = advise(records.scopes[0])
    assert "the loop of" in advice.text


def test_a_loop_of_what_calls_the_program_is_none_of_its_loops(client, proxy, tmp_path):
    """Such as the loop of a worker that takes one job after the other."""
    path = tmp_path / "lib" / "python3.11" / "threads.py"
    path.parent.mkdir(parents=True)
    path.write_text("def serve(jobs):\n    for job in jobs:\n        job()\n")
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)

    def work():
        sorted("abc", key=lambda key: client.get(key) or "")

    _, scope, _ = recorded(lambda: names["serve"]([work]), proxy)
    (advice,) = advise(scope)
    assert (advice.kind, advice.round_trips, advice.possible) == (Kind.LOOP, 3, 1)
    assert "the loop of" not in advice.text


def test_a_helper_that_is_called_again(client, proxy):
    """What can wait for the second call is named by that."""

    def known(key):
        return bool(client.get(key))

    def work():
        known("a")
        known("b")  # the second call

    _, scope, _ = recorded(work, proxy)
    (advice,) = advise(scope)
    assert advice.kind is Kind.EARLY
    line = inspect.getsourcelines(work)[1] + 2
    assert f"forced after line {line} it would" in advice.text


def test_pages_of_a_scan(client, proxy, plain):
    """Each needs the cursor of the one before it: nothing is to be gained."""
    plain.sadd("set", *range(1000))

    def work():
        cursor = 0
        while True:
            cursor, _ = client.sscan("set", cursor, count=300)
            if cursor == 0:
                break

    _, scope, now = recorded(work, proxy)
    assert now > 2
    assert [advice.kind for advice in advise(scope)] == [Kind.DEPENDENCY]
    assert possible(scope) == now


def test_a_write_keeps_its_place(client, proxy, plain):
    """A loop that reads what it has written cannot be taken apart."""

    def work():
        for _ in range(4):
            client.rpush("list", "x")
            assert client.llen("list")
            client.delete("list")

    found, least = advised(work, proxy)
    assert least == 1  # all in order, in one round trip
    assert found == [(Kind.LOOP, 4)]


def test_order_of_a_key_in_a_chain(client, proxy, plain):
    """What would change the order of reads and writes of one key is not promised."""

    def work():
        for _ in range(3):
            last = client.get("counter").value
            client.set("counter", int(last or 0) + 1)

    found, least = advised(work, proxy)
    assert (found, least) == ([(Kind.DEPENDENCY, 0)], 4)
    assert plain.get("counter") == "3"


def test_what_stays_where_it_is(client, proxy, plain):
    """Flushes that the program asked for, and what steps aside, divide what may share."""

    def work():
        assert not client.get("a")
        autobatch.flush()
        assert not client.get("b")
        client.blpop("list", timeout=0.01)
        assert not client.get("c")

    assert advised(work, proxy) == ([], 4)

    def explicit():
        client.get("a")
        autobatch.flush()
        assert not client.get("b")

    assert advised(explicit, proxy) == ([], 2)


def test_several_servers(client, second_server, proxy):
    """A round trip is one for all servers."""
    with connect(second_server) as other:
        other.ping()

        def work():
            assert not client.get("a")
            assert not other.get("b")
            assert not client.get("c")

        _, scope, _ = recorded(work, proxy)
    assert (scope.round_trips, possible(scope)) == (3, 1)


def test_what_map_calls(client, proxy, plain):
    """It is a dependency that is followed already."""
    plain.set("a", "b")

    def work():  # without an assert, which pytest 8.3 rewrites to what no source shows
        return client.get("a").map(client.get).value

    found, least = advised(work, proxy)
    assert least == 2
    assert [saved for _, saved in found if saved] == []


def test_source_that_is_not_there(client, proxy, plain):
    """Then the records alone tell, and the advice says so."""
    names = {"client": client}
    code = (
        "def work():\n"
        "    for key in 'abcd':\n"
        "        value = client.get(key)\n"
        "        str(value)\n"
        "def chain():\n"
        "    client.set('x', client.get('a'), nx=True)\n"
        "def decides():\n"
        "    if client.get('a') == '1':\n"
        "        client.get('b').value\n"
    )
    exec(compile(code, "nowhere.py", "exec"), names)
    plain.set("a", "1")
    _, scope, _ = recorded(names["work"], proxy)
    (loop,) = advise(scope)
    assert (loop.kind, loop.possible, loop.certain) == (Kind.LOOP, 1, False)
    assert loop.text.endswith("4 round trips could be 1, as far as can be seen")
    for name in ("chain", "decides"):
        _, scope, _ = recorded(names[name], proxy)
        (dependency,) = advise(scope)
        assert (dependency.kind, dependency.saved) == (Kind.DEPENDENCY, 0)


def test_a_long_scope(client, proxy, plain):
    """Its record has the last thousand flushes; the figures are those of the whole scope."""

    def work():
        for number in range(1200):
            assert not client.get(f"key{number}")

    _, scope, now = recorded(work, proxy)
    (loop,) = advise(scope)
    assert (loop.round_trips, loop.possible) == (1200, 201)
    assert now == 1200


@pytest.mark.parametrize("function", [advise, possible])
def test_a_scope_itself_is_no_record(client, function):
    """What `with batch() as scope` gives is not looked through: it says where the record is."""
    with autobatch.batch() as scope:
        client.get("a")
    with pytest.raises(TypeError, match=r"subscribe\(on_scope=\.\.\.\)"):
        function(scope)
