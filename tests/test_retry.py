"""What a broken connection does: each Future is settled, and no write is applied twice.

`autobatch.testing` breaks real connections to the real server, whose data tell what was applied.
"""

from __future__ import annotations

import itertools
import signal
import socket
import threading

import hiredis
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from autobatch.testing import Answer, Clog, Cut, Hold, Proxy, Swallow
from common import PATIENCE, connect, meanwhile

LOST = Cut(reply=0)
LOADING = Answer(b"-LOADING the dataset is in memory soon\r\n")
ALWAYS = 50  # more connections than anything here makes
TIMEOUT = 0.25  # of a socket that waits for what will not come


@pytest.fixture
def proxy(server, plain):
    plain.set("read", "it")
    with Proxy(server, delay=0) as proxy:
        yield proxy


@pytest.fixture(params=["pool", "single connection"])
def client(proxy, request):
    """A client with a connection to break. Whatever a test does to it, it is in step after."""
    with connect(proxy.port, single_connection_client=request.param != "pool") as client:
        client.ping()
        proxy.reset()
        yield client
        proxy.arm()
        assert client.echo("in step") == "in step"


def batched(call):
    with autobatch.batch():
        future = call()
        return future.exception() or future.value


def atomic(call):
    with autobatch.batch():
        with autobatch.batch(atomic=True):
            future = call()
        return future.exception() or future.value


def lone(call):
    try:
        return call()
    except Exception as error:
        return error


everyhow = pytest.mark.parametrize("run", [batched, atomic, lone])


def outcome(future):
    """Return a Future's value, or the name of its error."""
    error = future.exception()
    return future.value if error is None else type(error).__name__


# ---- one command -----------------------------------------------------------------------


@everyhow
def test_a_write_whose_reply_was_lost_is_unknown_and_applied_once(run, client, proxy, plain):
    """redis-py applies it up to eleven times."""
    proxy.arm(LOST)
    error = run(lambda: client.incr("n"))
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error, redis.ConnectionError)
    assert "INCRBY n was sent, but its reply was lost" in str(error)
    assert proxy.command_names.count("INCRBY") == 1
    assert plain.get("n") == "1"


@everyhow
def test_a_read_whose_reply_was_lost_is_sent_again(run, client, proxy):
    proxy.arm(LOST)
    assert run(lambda: client.get("read")) == "it"
    assert proxy.command_names.count("GET") == 2


@everyhow
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_clients_retry_says_how_often(run, retries, proxy):
    """A server that never answers gets a read once, and once more for each retry."""
    with connect(proxy.port, retry=Retry(NoBackoff(), retries)) as client:
        proxy.arm(*[LOST] * ALWAYS)
        assert isinstance(run(lambda: client.get("read")), OutcomeUnknown)
        assert proxy.command_names.count("GET") == 1 + retries
        proxy.reset()
        assert isinstance(run(lambda: client.incr("n")), OutcomeUnknown)
        assert proxy.command_names.count("INCRBY") == 1


@everyhow
def test_the_clients_retry_says_after_which_errors(run, proxy):
    only_disconnections = Retry(NoBackoff(), 3, supported_errors=(redis.ConnectionError,))
    with connect(proxy.port, retry=only_disconnections, socket_timeout=TIMEOUT) as client:
        proxy.arm(Swallow(), Swallow())
        assert isinstance(run(lambda: client.get("read")), redis.TimeoutError)
        assert proxy.command_names.count("GET") == 1


@everyhow
def test_a_timeout_of_a_write_is_unknown_and_a_timeout(run, proxy, plain):
    """Whoever catches redis-py's TimeoutError still does."""
    with connect(proxy.port, socket_timeout=TIMEOUT) as client:
        proxy.arm(Swallow())
        error = run(lambda: client.incr("n"))
        assert isinstance(error, OutcomeUnknown)
        assert isinstance(error, redis.TimeoutError)
        assert proxy.command_names.count("INCRBY") == 1
        assert (client.get("n"), plain.get("n")) == ("1", "1")


@everyhow
def test_a_timeout_of_a_read_is_followed_by_another_try(run, proxy):
    with connect(proxy.port, socket_timeout=TIMEOUT) as client:
        proxy.arm(Swallow())
        assert run(lambda: client.get("read")) == "it"
        assert proxy.command_names.count("GET") == 2


@everyhow
def test_a_refused_connection_sends_nothing(run):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with autobatch.Redis(port=port, retry=Retry(NoBackoff(), 1)) as client:
        for call in (lambda: client.get("read"), lambda: client.incr("n")):
            error = run(call)
            assert isinstance(error, NotSent)
            assert isinstance(error, redis.ConnectionError)
        assert not client.connection_pool._in_use_connections


@everyhow
def test_a_read_that_ran_is_not_called_unsent(run, proxy):
    """Its reply was lost, and then the server refused: NotSent would say that it did not run."""
    with connect(proxy.port) as client:
        client.ping()
        proxy.arm(LOST)
        proxy.refuse()
        assert isinstance(run(lambda: client.get("read")), OutcomeUnknown)
        assert proxy.command_names.count("GET") == 1


@everyhow
def test_an_exhausted_pool_sends_nothing(run, proxy):
    with connect(proxy.port, max_connections=1) as client:
        taken = client.connection_pool.get_connection()
        error = run(lambda: client.incr("n"))
        assert isinstance(error, NotSent)
        assert isinstance(error, redis.exceptions.MaxConnectionsError)
        client.connection_pool.release(taken)
        assert run(lambda: client.incr("n")) == 1


@everyhow
def test_a_wrong_password_sends_nothing(run, proxy, plain):
    plain.acl_setuser("alice", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    with connect(proxy.port, username="alice", password="wrong") as client:
        error = run(lambda: client.incr("n"))
    plain.acl_deluser("alice")
    assert isinstance(error, NotSent)
    assert isinstance(error, redis.AuthenticationError)
    assert proxy.names == []


@everyhow
def test_a_server_that_asks_for_a_password_is_an_error_of_that_command(run, client, proxy):
    proxy.arm(Answer(b"-NOAUTH Authentication required.\r\n"))
    assert isinstance(run(lambda: client.incr("n")), redis.AuthenticationError)
    assert proxy.command_names.count("INCRBY") == 1
    assert client.incr("n") == 1
    assert proxy.connections == 2  # as redis-py does, it has closed the connection


@everyhow
def test_a_server_that_is_loading_is_asked_again(run, client, proxy, plain):
    """It says so before it runs anything, so a write too may be sent again."""
    proxy.arm(LOADING)
    assert run(lambda: client.incr("n")) == 1
    assert proxy.command_names.count("INCRBY") == 2
    assert plain.get("n") == "1"


@everyhow
def test_a_server_that_goes_on_loading_ran_nothing(run, client, proxy):
    proxy.arm(*[LOADING] * ALWAYS)
    error = run(lambda: client.incr("n"))
    assert isinstance(error, redis.BusyLoadingError)
    assert not isinstance(error, OutcomeUnknown)
    assert proxy.command_names.count("INCRBY") == 2


@everyhow
def test_a_connection_killed_in_the_middle(run, client, proxy, plain):
    """Another client of the server kills it, after the command ran and before it is answered."""
    victim = client.client_id()
    fault = Swallow()
    proxy.arm(fault)

    def kill():
        assert fault.replied.wait(PATIENCE)
        plain.client_kill_filter(_id=victim)

    with meanwhile(kill):
        error = run(lambda: client.incr("n"))
    assert isinstance(error, OutcomeUnknown)
    assert plain.get("n") == "1"


@everyhow
@pytest.mark.parametrize("single", [False, True], ids=["pool", "single connection"])
def test_a_connection_closed_while_idle_is_no_error(run, single, server, plain):
    """The server restarted, or timed the connection out: nothing of ours was lost with it."""
    with connect(server, single_connection_client=single) as client:
        plain.client_kill_filter(_id=client.client_id())
        assert run(lambda: client.incr("n")) == 1
        assert plain.get("n") == "1"


@everyhow
def test_a_health_check_that_fails_costs_no_command(run, proxy, plain):
    """The PING before the batch finds the connection dead: another one takes the batch."""
    with connect(proxy.port, health_check_interval=1e-9) as client:
        client.echo("connected")
        proxy.arm(LOST)
        assert run(lambda: client.incr("n")) == 1
        assert plain.get("n") == "1"


def test_the_error_tells_command_line_and_cause(client, proxy):
    proxy.arm(LOST)
    with autobatch.batch():
        error = client.set("secret", "value").exception()
    assert isinstance(error.__cause__, redis.ConnectionError)
    assert [note.split(":")[0] for note in error.__notes__] == [f"SET secret, queued at {__file__}"]
    assert "value" not in str(error)


# ---- many commands ---------------------------------------------------------------------

# Each write counts in the server how often it was applied; each reply to it is 1.
MIXED = [
    (("INCR", "a"), b":1\r\n"),
    (("GET", "read"), b"$2\r\nit\r\n"),
    (("APPEND", "b", "x"), b":1\r\n"),
    (("RPUSH", "c", "x"), b":1\r\n"),
    (("GET", "read"), b"$2\r\nit\r\n"),
    (("HINCRBY", "d", "field", "1"), b":1\r\n"),
    (("STRLEN", "read"), b":2\r\n"),
]
READ = {"GET": "it", "STRLEN": 2}
REQUEST_ENDS = list(itertools.accumulate(len(hiredis.pack_command(args)) for args, _ in MIXED))
REPLY_ENDS = list(itertools.accumulate(len(reply) for _, reply in MIXED))


def send_mixed(client, proxy, plain, fault):
    plain.delete("a", "b", "c", "d")
    client.ping()
    proxy.arm(fault)
    with autobatch.batch():
        futures = [client.execute_command(*args) for args, _ in MIXED]
        return [outcome(future) for future in futures]


def times_applied(plain):
    return {
        "a": int(plain.get("a") or 0),
        "b": plain.strlen("b"),
        "c": plain.llen("c"),
        "d": int(plain.hget("d", "field") or 0),
    }


def check_mixed(outcomes, answered, applied, times):
    """Hold outcomes against how many commands were answered, and how many reached the server."""
    for position, ((name, key, *_), _) in enumerate(MIXED):
        got = outcomes[position]
        if name in READ:
            # Sent again, unless that would let it see a later write.
            later_lost = "OutcomeUnknown" in outcomes[position + 1 :]
            assert got == READ[name] or (later_lost and got == "OutcomeUnknown")
        else:
            assert got == (1 if position < answered else "OutcomeUnknown")
            assert times[key] == (1 if position < applied else 0)


def complete(ends, count):
    """Return how many of the pieces that end at `ends` are within the first `count` bytes."""
    return sum(end <= count for end in ends)


def test_cut_at_every_byte_of_the_request(client, proxy, plain):
    """Of what reached the server whole, the replies came back; nothing else was applied."""
    for count in range(REQUEST_ENDS[-1]):
        outcomes = send_mixed(client, proxy, plain, Cut(request=count))
        arrived = complete(REQUEST_ENDS, count)
        check_mixed(outcomes, arrived, arrived, times_applied(plain))


def test_cut_at_every_byte_of_the_request_without_replies(client, proxy, plain):
    for count in range(REQUEST_ENDS[-1] + 1):
        outcomes = send_mixed(client, proxy, plain, Cut(request=count, reply=0))
        check_mixed(outcomes, 0, complete(REQUEST_ENDS, count), times_applied(plain))


def test_cut_at_every_byte_of_the_replies(client, proxy, plain):
    """Replies that arrived settle their Futures; every write was applied exactly once."""
    for count in range(REPLY_ENDS[-1]):
        outcomes = send_mixed(client, proxy, plain, Cut(reply=count))
        check_mixed(outcomes, complete(REPLY_ENDS, count), len(MIXED), times_applied(plain))


def send_transaction(client, proxy, plain, fault):
    """Return the outcomes of [SET, MULTI INCR GET INCR EXEC, GET], and both counters."""
    plain.delete("a", "b", "before")
    client.ping()
    proxy.arm(fault)
    with autobatch.batch():
        before = client.set("before", 1)
        with autobatch.batch(atomic=True):
            inside = [client.incr("a"), client.get("read"), client.incr("b")]
        after = client.get("read")
        outcomes = [outcome(future) for future in (before, *inside, after)]
    return outcomes, plain.mget("a", "b")


TRANSACTION = [
    ("SET", "before", "1"),
    ("MULTI",),
    ("INCRBY", "a", "1"),
    ("GET", "read"),
    ("INCRBY", "b", "1"),
    ("EXEC",),
    ("GET", "read"),
]
TRANSACTION_ENDS = list(itertools.accumulate(len(hiredis.pack_command(c)) for c in TRANSACTION))
TRANSACTION_REPLY = b"+OK\r\n+OK\r\n" + b"+QUEUED\r\n" * 3 + b"*3\r\n:1\r\n$2\r\nit\r\n:1\r\n"
INSIDE_UNKNOWN = ["OutcomeUnknown"] * 3


def test_a_transaction_cut_at_every_byte_of_the_request_runs_whole_or_not(client, proxy, plain):
    for count in range(TRANSACTION_ENDS[-2] + 1):
        outcomes, counters = send_transaction(client, proxy, plain, Cut(request=count))
        whole = count == TRANSACTION_ENDS[-2]
        assert counters == (["1", "1"] if whole else [None, None])
        assert outcomes[1:4] == ([1, "it", 1] if whole else INSIDE_UNKNOWN)
        assert outcomes[4] == "it"


def test_a_transaction_cut_at_every_byte_of_its_replies_ran_once(client, proxy, plain):
    for count in range(len(TRANSACTION_REPLY) + 1):
        outcomes, counters = send_transaction(client, proxy, plain, Cut(reply=count))
        assert counters == ["1", "1"]
        whole = count == len(TRANSACTION_REPLY)
        assert outcomes[1:4] == ([1, "it", 1] if whole else INSIDE_UNKNOWN)
        assert outcomes[4] == "it"


def test_a_transaction_that_only_reads_is_sent_again(client, proxy):
    with autobatch.batch(), autobatch.batch(atomic=True):
        proxy.arm(Cut(reply=8))
        futures = [client.get("read"), client.strlen("read")]
    assert [outcome(future) for future in futures] == ["it", 2]
    assert proxy.names == [["MULTI", "GET", "STRLEN", "EXEC"]] * 2


def test_a_read_is_not_repeated_after_a_later_write(client, proxy):
    """Sent again, it would see what the program wrote only after it."""
    proxy.arm(LOST)
    with autobatch.batch():
        before = client.get("read")
        client.set("read", "changed").exception()
        assert outcome(before) in ("it", "OutcomeUnknown")


def test_a_script_that_may_write_is_not_sent_again(client, proxy, plain):
    count = client.register_script("return redis.call('INCR', KEYS[1])")
    proxy.arm(LOST)
    with autobatch.batch():
        futures = [count(keys=["n"]), count(keys=["n"])]
        assert [outcome(future) for future in futures] == ["OutcomeUnknown"] * 2
    assert plain.get("n") == "2"


def test_a_script_is_carried_along_when_the_rest_of_a_batch_is_sent_again(client, proxy):
    """The call that brought the source was answered; the next server may not know the script."""
    read = client.register_script("return redis.call('GET', KEYS[1])")
    proxy.arm(Cut(reply=len(b"$2\r\nit\r\n")))
    with autobatch.batch():
        futures = [client.execute_command("EVALSHA_RO", read.sha, 1, "read") for _ in range(2)]
        assert [outcome(future) for future in futures] == ["it", "it"]
    assert proxy.names == [["EVAL_RO", "EVALSHA_RO"], ["EVAL_RO"]]


BIG = 400_000
BIG_BATCH = {"max_bytes": 64 * 1024 * 1024}  # far more than the buffers of a connection hold


def append_much(client):
    return [client.append(f"big{number}", "x" * BIG) for number in range(40)]


def test_what_was_not_written_whole_is_sent_again(client, proxy, plain):
    """The connection breaks while the batch is being written."""
    proxy.arm(Cut(request=2 * BIG))
    with autobatch.batch(**BIG_BATCH):
        outcomes = [outcome(future) for future in append_much(client)]
    assert outcomes == sorted(outcomes, key=lambda got: got == BIG)
    assert {*outcomes} == {"OutcomeUnknown", BIG}
    lengths = [plain.strlen(f"big{number}") for number in range(40)]
    assert {*lengths} == {0, BIG}
    unknown = outcomes.count("OutcomeUnknown")
    assert lengths[unknown:] == outcomes[unknown:]
    assert proxy.connections == 2


def test_what_was_not_written_whole_is_not_sent_when_retries_are_used_up(proxy, plain):
    with connect(proxy.port, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        proxy.arm(Cut(request=2 * BIG))
        with autobatch.batch(**BIG_BATCH):
            outcomes = [outcome(future) for future in append_much(client)]
    assert {*outcomes} == {"OutcomeUnknown", "NotSent"}
    unknown = outcomes.count("OutcomeUnknown")
    assert [plain.strlen(f"big{number}") for number in range(unknown, 40)] == [0] * (40 - unknown)


def test_a_timeout_while_writing(proxy, plain):
    """The server reads no more: what was written whole is unknown, the rest is sent again."""
    with connect(proxy.port, socket_timeout=TIMEOUT) as client:
        client.ping()
        proxy.arm(Clog(2 * BIG))
        with autobatch.batch(**BIG_BATCH):
            futures = append_much(client)
            outcomes = [outcome(future) for future in futures]
    unknown = outcomes.count("OutcomeUnknown")
    assert outcomes == ["OutcomeUnknown"] * unknown + [BIG] * (40 - unknown)
    assert 0 < unknown < 40
    assert isinstance(futures[0].exception(), redis.TimeoutError)


def test_a_loading_server_gets_the_whole_batch_again(client, proxy, plain):
    proxy.arm(LOADING)
    with autobatch.batch():
        futures = [client.execute_command(*args) for args, _ in MIXED]
    assert [outcome(future) for future in futures] == [1, "it", 1, 1, "it", 1, 2]
    assert {*times_applied(plain).values()} == {1}


def test_a_broken_server_leaves_the_other_one_alone(client, proxy, second_server):
    with Proxy(second_server, delay=0) as others, connect(others.port) as other:
        proxy.arm(LOST)
        with autobatch.batch():
            lost, kept = client.incr("n"), other.echo("kept")
            assert (outcome(lost), outcome(kept)) == ("OutcomeUnknown", "kept")
        assert others.names == [["ECHO"]]


def test_a_broken_wave_leaves_the_later_ones_alone(client, proxy):
    """Two clients of one server take turns; the first connection breaks."""
    with connect(proxy.port) as other:
        proxy.arm(LOST)
        with autobatch.batch():
            lost, kept, read = client.incr("n"), other.incr("n"), client.get("n")
            assert [outcome(lost), outcome(kept), outcome(read)] == ["OutcomeUnknown", 2, "2"]


def test_an_error_reply_surfaces_before_a_later_lost_one(client, proxy):
    """The first error in program order is raised, the other one is its note."""
    wrong_type = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
    proxy.arm(Cut(reply=len(wrong_type)))
    with pytest.raises(redis.ResponseError, match="WRONGTYPE") as raised, autobatch.batch():
        client.lpush("read", "x")
        client.incr("n")
    assert "OutcomeUnknown" in raised.value.__notes__[1]


def test_a_map_of_what_was_lost_fails_with_it(client, proxy):
    proxy.arm(LOST)
    with autobatch.batch():
        double = client.incr("n").map(lambda value: value * 2)
        assert isinstance(double.exception(), OutcomeUnknown)


def test_stats_count_what_was_sent_again(client, proxy):
    proxy.arm(LOST)
    with autobatch.batch() as scope:
        client.get("read")
    assert (scope.stats.commands, scope.stats.flushes) == (1, 1)
    assert scope.stats.round_trips == scope.stats.exchanges == proxy.round_trips == 2


# ---- Ctrl-C ----------------------------------------------------------------------------


@pytest.fixture
def interrupt():
    """Return a function that interrupts the main thread, as Ctrl-C does."""
    main = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def after(event, action):
    """Return a function that waits for an event, then acts."""

    def wait_and_act():
        assert event.wait(PATIENCE)
        action()

    return wait_and_act


def test_interrupted_while_reading(client, proxy, plain, interrupt):
    """Every Future is settled and tells the truth; the connection is closed."""
    hold = Hold()
    proxy.arm(hold)
    with pytest.raises(KeyboardInterrupt), autobatch.batch():
        futures = [client.incr("n"), client.get("read")]
        with meanwhile(after(hold.replied, interrupt)):
            futures[1].value
    assert [future.done() for future in futures] == [True, True]
    assert [outcome(future) for future in futures] == ["OutcomeUnknown", "OutcomeUnknown"]
    hold.released.set()
    assert client.echo("another") == "another"
    assert plain.get("n") == "1"
    assert proxy.connections == 2


def test_interrupted_at_the_end_of_a_scope(client, proxy, interrupt):
    hold = Hold()
    proxy.arm(hold)
    with (
        pytest.raises(KeyboardInterrupt),
        meanwhile(after(hold.replied, interrupt)),
        autobatch.batch() as scope,
    ):
        future = client.incr("n")
    assert scope.closed
    assert outcome(future) == "OutcomeUnknown"


def test_interrupted_outside_a_scope(client, proxy, interrupt):
    hold = Hold()
    proxy.arm(hold)
    with pytest.raises(KeyboardInterrupt), meanwhile(after(hold.replied, interrupt)):
        client.incr("n")
    assert client.echo("another") == "another"


def test_interrupted_while_writing(client, proxy, plain, interrupt):
    """What was written and ran is not called unsent."""
    clog = Clog(2 * BIG)
    proxy.arm(clog)
    with pytest.raises(KeyboardInterrupt), autobatch.batch(**BIG_BATCH):
        first = client.incr("n")
        rest = append_much(client)
        with meanwhile(after(clog.replied, interrupt)):
            first.value
    assert plain.get("n") == "1"
    assert outcome(first) == "OutcomeUnknown"
    assert {outcome(future) for future in rest} <= {"OutcomeUnknown", "NotSent"}


def test_interrupted_with_two_servers_in_flight(client, proxy, second_server, interrupt):
    """Both replies are lost; the batch that would have followed was not sent."""
    holds = Hold(), Hold()
    proxy.arm(holds[0])

    def interrupt_both():
        assert all(hold.replied.wait(PATIENCE) for hold in holds)
        interrupt()

    with Proxy(second_server, delay=0) as others, connect(others.port) as other:
        others.arm(holds[1])
        with connect(proxy.port) as later, pytest.raises(KeyboardInterrupt), autobatch.batch():
            futures = [client.incr("n"), other.echo("other"), later.incr("n")]
            with meanwhile(interrupt_both):
                futures[0].value
    assert [outcome(future) for future in futures] == ["OutcomeUnknown"] * 2 + ["NotSent"]


def test_interrupted_while_settling(client, interrupt):
    """The replies were all read: no Future stays pending, though a callback was interrupted."""
    client.set_response_callback("GET", lambda reply: interrupt())
    with pytest.raises(KeyboardInterrupt), autobatch.batch():
        client.get("read")
        rest = [client.incr("n"), client.incr("n")]
    assert [future.done() for future in rest] == [True, True]


def test_a_retry_that_has_nothing_left_to_send_ends(proxy):
    """Refused by a loading server, then sent and lost: unknown, with retries to spare."""
    proxy.arm(LOADING, LOST)
    with connect(proxy.port, retry=Retry(NoBackoff(), 3)) as client, pytest.raises(OutcomeUnknown):
        client.incr("n")
