"""A Future behaves as its value; looking at it forces nothing."""
# ruff: noqa: UP030, UP031, UP032, PLW0108  # the ways to format are what is tested

from __future__ import annotations

import _thread
import collections.abc
import contextlib
import copy
import dataclasses
import functools
import gc
import json
import logging
import math
import numbers
import operator
import os
import pickle
import pprint
import queue
import statistics
import sys
import weakref
from decimal import Decimal

import pytest
import redis
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autobatch.future import AsyncFuture, Future, future_of, promise_of, unwrap
from autobatch.promise import Failure, Promise
from common import PATIENCE
from pending import Keeper, later, now

# Every kind of value that a reply is, or that a response callback makes of one.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.sampled_from([0.0, 0.5, -2.25, 1e308, math.inf]),
    st.text("ab1% ", max_size=3),
    st.binary(max_size=3),
)
hashables = st.one_of(scalars, st.tuples(scalars, scalars), st.frozensets(scalars, max_size=2))
values = st.one_of(
    hashables,
    st.just(math.nan),
    st.lists(scalars, max_size=3),
    st.sets(hashables, max_size=3),
    st.dictionaries(st.text("ab", max_size=2), scalars, max_size=3),
)
lazily = st.sampled_from([later, now])


def _call(*args, **options):
    return args, options


UNARY = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "invert": operator.invert,
    "not": operator.not_,
    "index": operator.index,
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "bytes": bytes,
    "str": str,
    "hash": hash,
    "hex": hex,
    "chr": chr,
    "range": range,
    "round": round,
    "round to a digit": lambda value: round(value, 1),
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "len": len,
    "list": list,
    "tuple": tuple,
    "set": set,
    "dict": dict,
    "sorted": sorted,
    "reversed": lambda value: list(reversed(value)),
    "sum": sum,
    "max": max,
    "[*x]": lambda value: [*value],
    "{**x}": lambda value: {**value},
    "f(**x)": lambda value: _call(**value),
    "f(*x)": lambda value: _call(*value),
    "f-string": lambda value: f"{value}",
    "f-string, filled": lambda value: f"{value:*>8}",
    "f-string, rounded": lambda value: f"{value:.2f}",
    "str.format": lambda value: "{0} {0!s:5}".format(value),
    "str.format, attribute": lambda value: "{0.real}".format(value),
    "str.format, item": lambda value: "{0[a]}".format(value),
    "%d": lambda value: "%d" % (value,),
    "%5.1f": lambda value: "%5.1f" % (value,),
    "%s": lambda value: "%s" % (value,),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "dir": dir,
    "Decimal": lambda value: Decimal(0) + value,
    "json.dumps": lambda value: json.dumps([value], default=unwrap),
}
# C code asks a class for its number, and cannot be told that it is a text's.
LAX_ABOUT_TEXT = {UNARY[name] for name in ("sqrt", "%d", "%5.1f")}
ARITHMETIC = "add sub mul matmul truediv floordiv mod pow lshift rshift and xor or"
OTHERS = "lt le eq ne gt ge getitem contains"
BINARY = {name: getattr(operator, f"__{name}__") for name in (*ARITHMETIC.split(), *OTHERS.split())}
BINARY |= {"divmod": divmod, "unpacking": lambda left, right: [*left, *right]}
# Here str and bytes look at the real type of the other side, which no class can help.
TEXT_ASKS_NOBODY = {BINARY["mod"], BINARY["contains"]}
IN_PLACE = {name: getattr(operator, f"__i{name}__") for name in ARITHMETIC.split()}


def outcome(function, *args):
    """Return the type and the value of a result, or the type of the error."""
    try:
        result = function(*args)
    except Exception as error:
        return type(error), None
    return type(result), result


def same(left, right):
    """Return whether two outcomes are equal; a NaN is, here."""
    return left[0] is right[0] and (left[1] == right[1] or repr(left[1]) == repr(right[1]))


@pytest.mark.parametrize("operation", UNARY.values(), ids=UNARY)
@given(value=values, lazy=lazily)
@settings(max_examples=40, deadline=None)
def test_operations_on_it(operation, value, lazy):
    """An operation on a Future gives what it gives on the value, or the same error."""
    assume(not (operation in LAX_ABOUT_TEXT and isinstance(value, (str, bytes))))
    assert same(outcome(operation, lazy(value)), outcome(operation, value))


@pytest.mark.parametrize("operation", BINARY.values(), ids=BINARY)
@given(left=values, right=values, lazy=lazily)
@settings(max_examples=60, deadline=None)
def test_operations_with_something_plain(operation, left, right, lazy):
    """`future op x` is `value op x`."""
    assert same(outcome(operation, lazy(left), right), outcome(operation, left, right))


@pytest.mark.parametrize("operation", BINARY.values(), ids=BINARY)
@given(left=values, right=values, lazy=lazily)
@settings(max_examples=60, deadline=None)
def test_reflected_operations(operation, left, right, lazy):
    """`x op future` is `x op value`, and so is `future op future`."""
    assume(not (operation in TEXT_ASKS_NOBODY and isinstance(left, (str, bytes))))
    # A set looks for another set by its contents, if it really is one.
    assume(not (operation is operator.contains and isinstance(right, set)))
    expected = outcome(operation, left, right)
    assert same(outcome(operation, left, lazy(right)), expected)
    assert same(outcome(operation, lazy(left), lazy(right)), expected)


@pytest.mark.parametrize("operation", IN_PLACE.values(), ids=IN_PLACE)
@given(left=values, right=values, lazy=lazily)
@settings(max_examples=40, deadline=None)
def test_operations_in_place(operation, left, right, lazy):
    """`future op= x` changes a mutable value itself, and leaves a plain value behind."""
    value, reference = copy.deepcopy(left), copy.deepcopy(left)
    expected = outcome(operation, reference, right)
    assert same(outcome(operation, lazy(value), right), expected)
    assert same((type, value), (type, reference))


@pytest.mark.parametrize("operation", IN_PLACE.values(), ids=IN_PLACE)
@given(left=values, right=values, lazy=lazily)
@settings(max_examples=40, deadline=None)
def test_reflected_operations_in_place(operation, left, right, lazy):
    """`x op= future` gives x the value that `x op= value` gives it."""
    assume(not (operation is operator.imod and isinstance(left, (str, bytes))))
    # A test of its own is below.
    assume(not (operation is operator.iadd and isinstance(left, list)))
    expected = outcome(operation, copy.deepcopy(left), right)
    assert same(outcome(operation, copy.deepcopy(left), lazy(right)), expected)


@pytest.mark.parametrize("value", [[1, 2], (1, 2), {1, 2}, {"a": 1}, "ab"], ids=repr)
def test_a_list_is_extended_by_whatever_can_be_iterated(value):
    """`items += client.smembers(key)` works as it does with the plain set."""
    items, expected = [0], [0]
    items += later(value)
    expected += value
    assert items == expected


@pytest.mark.parametrize("value", [(1, 2), "x", {"a": 3}], ids=repr)
def test_a_lazy_format_with_lazy_values(value):
    """The format is a Future's value here, so its `%` takes a lazy tuple or dict as the plain."""
    template = {tuple: "%s-%s", str: "<%s>", dict: "%(a)d"}[type(value)]
    assert later(template) % later(value) == template % value


@pytest.mark.parametrize("where", ["100", "110", "101", "111"])
def test_pow_with_a_modulus(where):
    """pow() with three arguments; Python asks the first one alone, which has to be the Future."""
    args = [later(arg) if lazy == "1" else arg for arg, lazy in zip((7, 5, 3), where, strict=True)]
    assert pow(*args) == pow(7, 5, 3)


def test_a_value_is_forced_once():
    """However often it is used, its owner is asked once."""
    keeper = Keeper()
    future = keeper.future(3)
    assert (future + 1, 1 + future, future * future) == (4, 4, 9)
    assert keeper.forced == 1


# ---- containers ----------------------------------------------------------------------------


def test_items_are_set_and_deleted():
    """A mutable value is changed through its Future, slices and lazy keys too."""
    value = [1, 2, 3, 4]
    future = later(value)
    future[later(0)] = "a"
    future[1:3] = later(["b"])
    del future[-1]
    assert value == ["a", "b"]
    mapping = later({"x": 1})
    mapping[later("y")] = 2
    del mapping["x"]
    assert mapping == {"y": 2}


def test_missing_items_raise_as_they_do():
    """The errors of item access are the value's."""
    with pytest.raises(KeyError):
        later({})["a"]
    with pytest.raises(KeyError):
        del later({})["a"]
    with pytest.raises(IndexError):
        later([])[0]
    with pytest.raises(TypeError):
        later((1,))[0] = 2


def test_membership():
    """`in` works with a Future on either side, or on both."""
    assert "b" in later({"b": 1})
    assert later("b") in later("abc")
    assert later(2) in [1, 2]
    assert later(2) in {1, 2}
    assert later(2) in {2: None}
    assert later(3) not in later((1, 2))


def test_iteration_and_unpacking():
    """A for loop, unpacking, enumerate and zip see the items."""
    first, *rest = later([1, 2, 3])
    assert (first, rest) == (1, [2, 3])
    assert list(enumerate(later("ab"))) == [(0, "a"), (1, "b")]
    assert list(zip(later([1]), later([2]), strict=True)) == [(1, 2)]
    assert dict(later([("a", 1)])) == {"a": 1}


def test_sorting_and_summing_futures():
    """Builtins over a list of Futures need no unwrapping."""
    scores = [later(3), later(1), later(2)]
    assert sum(scores) == 6
    assert [unwrap(score) for score in sorted(scores)] == [1, 2, 3]
    assert max(scores) == 3
    assert any([later(0), later(1)])
    assert not all([later(""), later("x")])


def test_it_is_a_dict_key_and_a_set_member():
    """It hashes as its value, so it finds what the value finds."""
    assert {later("a"): 1}["a"] == 1
    assert {"a": 1}[later("a")] == 1
    assert {later(1), later(1), 1} == {1}
    with pytest.raises(TypeError):
        hash(later([]))


def test_truth():
    """`if future` asks the value."""
    assert later(1)
    assert not later(0)
    assert not later(None)
    assert not later([])


# ---- attributes, types, copies ---------------------------------------------------------------


class Result:
    """Such as modules of redis-py make of a reply."""

    def __init__(self):
        self.total = 3

    def double(self):
        return self.total * 2


def test_attributes():
    """Attributes and methods are the value's: read, set, deleted, listed."""
    value = Result()
    future = later(value)
    assert future.total == 3
    assert future.double() == 6
    future.total = 4
    assert value.total == 4
    del future.total
    assert not hasattr(future, "total")
    assert vars(later(value)) == {}
    assert dir(future) == dir(value)
    with pytest.raises(AttributeError, match="'int' object has no attribute 'nope'"):
        later(3).nope  # the access is the test


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, int),
        (True, bool),
        (1.5, float),
        ("a", str),
        (b"a", bytes),
        ([], list),
        ({}, dict),
        (set(), set),
        ((), tuple),
        (None, type(None)),
        (1, numbers.Number),
        ({}, collections.abc.Mapping),
        ([], collections.abc.Sequence),
        ("a", str | None),
        (Result(), Result),
    ],
)
def test_isinstance(value, kind):
    """isinstance() believes the value's class, abstract ones too."""
    assert isinstance(later(value), kind)


def test_isinstance_of_another_class():
    """A mismatch is a mismatch; only that it is a Future needs no value."""
    keeper = Keeper()
    future = keeper.future("a")
    assert isinstance(future, Future)
    assert keeper.forced == 0
    assert not isinstance(future, (int, bytes))
    assert not isinstance(future, collections.abc.Mapping)
    assert future.__class__ is str


def test_match_by_class_and_value():
    """`match` finds the class and compares values."""

    def kind(subject):
        match subject:
            case 7:
                return "seven"
            case int():
                return "int"
            case str(text) if text:
                return "text"
            case None:
                return "none"
        return "other"

    assert [kind(later(value)) for value in (7, 8, "a", "")] == ["seven", "int", "text", "other"]


def test_copies_are_plain():
    """copy() and deepcopy() give plain values, also from deep inside."""
    value = [[1]]
    shallow, deep = copy.copy(later(value)), copy.deepcopy({"a": later(value)})
    assert type(shallow) is list
    assert shallow == value
    assert shallow is not value
    assert shallow[0] is value[0]
    assert type(deep["a"]) is list
    assert deep["a"][0] is not value[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@given(value=values)
@settings(max_examples=20, deadline=None)
def test_pickle_gives_the_plain_value(protocol, value):
    """What was pickled is the value."""
    (loaded,) = pickle.loads(pickle.dumps([later(value)], protocol))
    assert same((type(loaded), loaded), (type(value), value))


def test_who_reads_a_pickle_needs_no_autobatch():
    """Caches are shared with programs that do not have it."""
    assert b"autobatch" not in pickle.dumps({"a": later([1])})


def test_pickle_of_a_failed_one_raises_its_error():
    """An error cannot hide in a cache."""
    with pytest.raises(ZeroDivisionError):
        pickle.dumps(later(ZeroDivisionError()))


def test_json_through_the_default_hook():
    """`default=unwrap` is all that json needs for values."""
    data = {"a": later([1, later("x")]), "b": later(None)}
    assert json.loads(json.dumps(data, default=unwrap)) == {"a": [1, "x"], "b": None}
    assert json.loads(later(b'{"a": 1}').decode()) == {"a": 1}


before_312 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="newer ones make a deepcopy")


@dataclasses.dataclass
class Row:
    """What holds a value."""

    field: object


@pytest.mark.parametrize("kind", [Future, AsyncFuture])
@pytest.mark.parametrize(
    ("make_another", "value"),
    [
        pytest.param(lambda value: dataclasses.asdict(Row(value)), {"a": "1"}, marks=before_312),
        pytest.param(lambda value: dataclasses.asdict(Row(value)), ["1"], marks=before_312),
        (lambda value: statistics.mean([value, value]), 1),
        (lambda value: type(value)(), []),
        (lambda value: type(value)(key=1), {}),
    ],
)
def test_who_makes_another_of_its_class_is_told_what_to_do(make_another, value, kind):
    make_another(value)
    future = future_of(promise_of(now(value)), kind)
    with pytest.raises(
        TypeError, match=r"give it autobatch\.unwrap\(value\), or autobatch\.resolve"
    ):
        make_another(future)


def test_bytearray():
    """It takes what a reply can be: bytes, or a size."""
    assert bytearray(later(b"ab")) == bytearray(b"ab")
    assert bytearray(later(3)) == bytearray(3)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 688 is Python 3.12's")
def test_buffer():
    """Bytes are had without a copy where Python asks a class for them."""
    future = later(b"abc")
    assert memoryview(future) == b"abc"
    assert b"".join([future, b"d"]) == b"abcd"
    with pytest.raises(TypeError):
        memoryview(later("text"))


# ---- what it has not -------------------------------------------------------------------------


LEFT_OFF = "call next enter exit aenter aexit await aiter anext fspath get set delete set_name"


@pytest.mark.parametrize("name", LEFT_OFF.split())
def test_left_off(name):
    """Frameworks take a class with these for something else."""
    assert not any(f"__{name}__" in vars(kind) for kind in Future.__mro__)


def test_what_is_left_off_does_not_work():
    """Python's own checks say no, without forcing where they ask the class alone."""
    keeper = Keeper()
    future = keeper.future("a")
    assert not callable(future)

    class Holder:
        attribute = future

    assert type(Holder().attribute) is Future
    assert keeper.forced == 0
    assert not isinstance(future, os.PathLike)
    with pytest.raises(TypeError):
        os.fspath(future)
    with pytest.raises(TypeError):
        next(future)
    with pytest.raises(TypeError), future:
        pass

    async def wait():
        await future

    with pytest.raises(TypeError):
        wait().send(None)


# ---- looking is free -------------------------------------------------------------------------


class Named(Promise):
    """With a description, as a command has one."""

    __slots__ = ()

    def describe(self):
        return "GET user:1"


@pytest.fixture
def keeper():
    keeper = Keeper()
    yield keeper
    assert keeper.forced == 0


def free_looks():
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "%s and %s", ("x", "y"), None)

    def log(future):
        record.args = (future, future)
        assert "pending" in record.getMessage()

    def weak(future):
        assert weakref.ref(future)() is future

    return {
        "repr": repr,
        "type": type,
        "id": id,
        "is": lambda future: future is None,
        "callable": callable,
        "done": lambda future: future.done(),
        "sizeof": sys.getsizeof,
        "weakref": weak,
        "list": lambda future: repr([future]),
        "dict value": lambda future: repr({"a": future}),
        "tuple": lambda future: (future,),
        "isinstance of Future": lambda future: isinstance(future, Future),
        "f-string with !r": lambda future: f"{future!r}",
        "%r": lambda future: "%r" % (future,),
        "log record": log,
        "pprint": pprint.pformat,
        "pprint of many": lambda future: pprint.pformat([future] * 20),
        "map": lambda future: future.map(len),
        "a notebook": lambda future: [
            hasattr(future, name)
            for name in (
                "_repr_html_",
                "_repr_mimebundle_",
                "_ipython_display_",
                "_ipython_canary_method_should_not_exist_",
                "__rich_repr__",
            )
        ],
    }


@pytest.mark.parametrize("look", free_looks().values(), ids=free_looks())
def test_looking_is_free(look, keeper):
    """None of these needs the value."""
    look(keeper.future("a"))


@pytest.mark.parametrize("args", [1, 2])
@pytest.mark.parametrize("value", [{"a": 1}, "text"], ids=repr)
def test_logging_is_free(args, value, keeper, caplog):
    """A log call with a pending Future says that it is pending."""
    caplog.set_level(logging.INFO)
    future = keeper.future(value)
    message = "got" + " %s" * args
    logging.getLogger("shop").info(message, *[future] * args)
    assert caplog.messages == ["got" + " <Future pending: value>" * args]


def test_a_disabled_log_call_is_free(keeper, caplog):
    """A message that is not logged is not made."""
    caplog.set_level(logging.WARNING)
    logging.getLogger("shop").info("got %s", keeper.future("a"))
    assert caplog.messages == []


def test_a_settled_one_is_logged_as_its_value(caplog):
    """Where the value is known, the log shows it."""
    caplog.set_level(logging.INFO)
    logging.getLogger("shop").info("got %s, %d", now("a"), now(3))
    assert caplog.messages == ["got a, 3"]


@pytest.mark.parametrize("look", ["str(future)", "isinstance(future, str)", "future.__class__"])
@pytest.mark.parametrize("line", [True, False], ids=["a line", "no line"])
def test_looked_at_by_the_outermost_line(look, line):
    """As at the top of a script, or where a thread or a greenlet begins with a builtin."""
    future = Keeper().future("a")
    builtins = {
        "str(future)": map(str, [future]),
        "isinstance(future, str)": map(isinstance, [future], [str]),
        "future.__class__": map(operator.attrgetter("__class__"), [future]),
    }
    looked = map(eval, [look], [{"future": future}]) if line else builtins[look]
    seen = queue.SimpleQueue()
    # All of this is C: no frame of Python is outside of what looks.
    _thread.start_new_thread(all, (map(seen.put, looked),))
    assert seen.get(timeout=PATIENCE) == {"str(future)": "a", "future.__class__": str}.get(
        look, True
    )


def test_repr_tells_the_state():
    """A repr says what a Future is the value of, and what has become of it."""
    keeper = Keeper()
    promise = Named(keeper)
    future = future_of(promise)
    assert repr(future) == "<Future pending: GET user:1>"
    promise.outcome = "Ada"
    assert repr(future) == "<Future done: 'Ada'>"
    assert repr(future.map(len)) == "<Future done: 3>"
    assert repr(keeper.future("x").map(len)) == "<Future pending: map of value>"


def test_repr_of_a_failed_one_shows_no_message():
    """A server's message may quote an argument, so the repr names the class of the error."""
    assert repr(now(ValueError("hunter2"))) == "<Future failed: value: ValueError>"


@given(value=values)
@settings(deadline=None)
def test_repr_is_never_an_error_and_never_a_lie(value):
    """Pending before, done after, whatever the value."""
    future = later(value)
    assert repr(future) == "<Future pending: value>"
    future.value  # forced
    assert repr(future).startswith("<Future done: ")


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, b"x" * 10_000, list(range(10_000)), dict.fromkeys(range(999), "y" * 99)],
    ids=lambda value: type(value).__name__,
)
def test_repr_of_long_values_is_short(value):
    """A debugger's window stays readable."""
    assert len(repr(now(value))) < 1000


def test_repr_of_a_value_that_holds_futures_is_free(keeper):
    """A structure that a function of map() made may hold what is pending."""
    assert "pending" in repr(now([keeper.future(1)]))


# ---- its own interface -------------------------------------------------------------------------


def test_value_and_done():
    """`.value` forces; `.done()` tells without."""
    future = later(None)
    assert not future.done()
    assert future.value is None
    assert future.done()


def test_exception():
    """The error of a command as an object, None where there is a value; both force."""
    error = ValueError("no")
    failed = later(error)
    assert failed.exception() is error
    assert failed.done()
    assert promise_of(failed).outcome.seen
    assert later(1).exception() is None


def test_errors_say_where_they_come_from():
    """The note is on the error that is raised, however often that is, and once."""
    promise = Named(Keeper())
    future = future_of(promise)
    promise.outcome = Failure(ValueError("no"), promise)
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as raised:
            future + 1
        assert raised.value.__notes__ == ["GET user:1"]


@pytest.mark.parametrize("use", [bool, str, len, iter, hash, unwrap, copy.copy, dir])
def test_every_use_of_a_failed_one_raises(use):
    """An error cannot be overlooked by using the Future in another way."""
    with pytest.raises(ZeroDivisionError):
        use(later(ZeroDivisionError()))


@pytest.mark.parametrize("error", [ZeroDivisionError(), redis.ResponseError("no")], ids=repr)
def test_a_raised_error_leaves_no_reference_cycle(error):
    """A failed Future goes when its last user does, without the garbage collector."""

    def use(futures):
        with contextlib.suppress(type(error)):
            futures.pop().value  # raises

    future = now(error)
    alive = weakref.ref(promise_of(future))
    futures = [future]
    del future
    gc.collect()
    gc.disable()
    try:
        use(futures)
        assert alive() is None
    finally:
        gc.enable()


# ---- map -------------------------------------------------------------------------------------


def test_map_does_not_force(keeper):
    """The function waits for the value."""
    called = []
    future = keeper.future(3).map(called.append)
    assert called == []
    assert not future.done()


def test_map_runs_when_the_value_comes():
    """The function is called once, with the plain value, whether or not anybody asks."""
    keeper = Keeper()
    called = []
    future = keeper.future(3).map(lambda value: called.append(type(value)) or value + 1)
    keeper.flush()
    assert called == [int]
    assert (future.value, future + 1, keeper.forced) == (4, 5, 0)


def test_map_of_a_settled_one_runs_at_once():
    """There is nothing to wait for."""
    future = now(3).map(str)
    assert future.done()
    assert future == "3"


def test_map_takes_plain_functions(keeper):
    """What cannot be called, and a coroutine that nobody would await, are refused at the call."""

    async def load(value):
        return value

    for function in (load, functools.partial(load), 5, None):
        with pytest.raises(TypeError, match="map\\(\\) takes a plain function"):
            keeper.future(3).map(function)


def test_maps_chain():
    """A Future of a Future's function is a Future."""
    assert later("3").map(int).map(lambda n: n + 1).map(str) == "4"


def test_several_maps_of_one():
    """Each function gets the value."""
    future = later(3)
    mapped = [future.map(lambda value, n=n: value * n) for n in range(3)]
    assert [unwrap(one) for one in mapped] == [0, 3, 6]


def test_a_long_chain_of_maps():
    """A loop may chain as many as it likes."""
    future = later(0)
    for _ in range(2000):
        future = future.map(lambda value: value + 1)
    assert future == 2000


def test_an_error_in_the_function_is_its_own_future_s():
    """The source keeps its value; the owner hears of the error, should nobody look."""
    keeper = Keeper()
    source = keeper.future(0)
    mapped = source.map(lambda value: 1 / value)
    assert source == 0
    with pytest.raises(ZeroDivisionError) as raised:
        mapped.value  # raises
    assert raised.value.__notes__ == ["map of value"]
    assert [failure.error for failure in keeper.failures] == [mapped.exception()]
    assert repr(mapped) == "<Future failed: map of value: ZeroDivisionError>"


def test_an_interrupted_function_keeps_nobody_waiting():
    """Ctrl-C in one function ends the program's wait; every Future still has its outcome."""

    def interrupt(_):
        raise KeyboardInterrupt

    source = later(1)
    interrupted, other = source.map(interrupt), source.map(str)
    with pytest.raises(KeyboardInterrupt):
        source.value  # raises
    assert other == "1"
    assert isinstance(interrupted.exception(), KeyboardInterrupt)


def test_an_error_of_the_source_is_shared():
    """The function is not called, and looking at either counts as seeing the error."""
    keeper = Keeper()
    source = keeper.future(ValueError("no"))
    mapped = source.map(pytest.fail).map(pytest.fail)
    assert mapped.exception() is source.exception()
    assert promise_of(mapped).outcome is promise_of(source).outcome
    assert len(keeper.failures) == 1


def test_a_function_that_returns_a_future_is_flattened():
    """The result is the inner Future's value, not a Future of a Future."""
    keeper = Keeper()
    mapped = keeper.future("key").map(lambda key: keeper.future(f"value of {key}"))
    assert type(mapped.value) is str
    assert mapped == "value of key"


def test_a_flattened_future_may_have_another_owner():
    """The inner Future is forced where it lives."""
    mapped = now("key").map(lambda key: later(key.upper()))
    assert not mapped.done()
    assert mapped == "KEY"


def test_a_flattened_future_that_fails():
    """The inner error is the result's."""
    keeper = Keeper()
    mapped = keeper.future(1).map(lambda _: keeper.future(ValueError("inner")))
    with pytest.raises(ValueError, match="inner"):
        mapped.value  # raises


# ---- unwrap ----------------------------------------------------------------------------------


def test_unwrap():
    """The plain value of a Future; anything else, the very same object."""
    value = object()
    assert unwrap(later(value)) is value
    assert unwrap(value) is value
    assert unwrap(later(None)) is None
    with pytest.raises(ZeroDivisionError):
        unwrap(later(ZeroDivisionError()))
