"""Asyncio's shared connection: the batches of all tasks travel on it, one behind the other.

redis-py opens the connection: TLS, AUTH, HELLO, the database, all of the greeting is its own. Then
the transport gets another protocol, which parses replies straight from the event loop's callback
and settles batches in the order in which they were written. No task reads it, so cancelling a task
cannot leave a reply behind for the next one.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import selectors
import weakref
from collections.abc import Callable
from typing import Any

import redis
from redis.asyncio import ConnectionPool

from autobatch import switch
from autobatch.batch import EVERYTHING, Batch, Written, resend
from autobatch.command import Command
from autobatch.promise import PENDING, run_all
from autobatch.wire import connection as greeted
from autobatch.wire.server import demotion, follows_primary
from autobatch.wire.tick import Tick

# Commands that may be on their way at once; the others wait, and with them their callers.
MAX_IN_FLIGHT = 20_000
# Commands that travel as one batch, and replies that are parsed in one go: then the loop gets its
# turn.
PORTION = 1_000
# Bytes that are written in one go, before the loop gets its turn.
MAX_WRITE = 256 * 1024
# Seconds of silence that are too many without a socket_timeout: at a loop's end, or in doubt.
PATIENCE = 5.0


class LoopEnds(redis.ConnectionError):
    """A connection was closed for good, since its event loop ends."""


class _Flight:
    """One batch, handed over."""

    __slots__ = (
        "_landed",
        "attempts",
        "batch",
        "commands",
        "count",
        "named",
        "raw",
        "replies",
        "since",
        "waiter",
    )

    def __init__(self, batch: Batch, landed: Callable[[], None], since: float) -> None:
        self.batch = batch
        self.commands: list[Command] = batch.commands()
        self.attempts = 0
        self.since = since
        self.waiter: asyncio.Future[None] | None = None
        self._landed = landed
        self.prepare()

    def prepare(self) -> None:
        """Start over with what is left of the batch."""
        self.count, self.raw = self.batch.expected()
        self.replies: list[Any] = []
        self.named = False  # all replies are errors that `retry_on_error` names

    def give_up(self, cause: BaseException) -> None:
        """Settle what will not be sent again, or hand it back to who divided the batch."""
        if self.named:
            self.batch.settle(self.replies)
        else:
            self.batch.hand_back(cause)

    def land(self) -> None:
        """Tell whoever waits for commands that are settled by now."""
        try:
            waited_for = [
                command
                for command in self.commands
                if command.callbacks is not None and command.outcome is not PENDING
            ]
            run_all(Command.run_callbacks, waited_for)
        finally:
            if self.batch.divided or not self.batch.entries:
                self._landed()
                if self.waiter is not None and not self.waiter.done():
                    self.waiter.set_result(None)


class _Receiver(asyncio.Protocol):
    """What the transport of one connection talks to; it is silent once that was given up."""

    def __init__(self, link: Link) -> None:
        self.link: Link | None = link

    def data_received(self, data: bytes) -> None:
        if self.link is not None:
            self.link.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.link is not None:
            cause = redis.ConnectionError(f"Connection lost: {error or 'closed by the server'}")
            cause.__cause__ = error
            self.link.lose(cause)

    def pause_writing(self) -> None:
        if self.link is not None:
            self.link.paused = True

    def resume_writing(self) -> None:
        if self.link is not None:
            self.link.paused = False
            self.link.pump()


class Link:
    """One shared connection of one event loop. It opens on first use, and again after a loss."""

    def __init__(self, pool: ConnectionPool, tick: Tick) -> None:
        self._pool = weakref.ref(pool)
        self._follows = follows_primary(pool)
        self._tick = tick
        self._loop = tick.loop
        self._timeout: float | None = None  # the connection's own, once there is one
        self._waiting: collections.deque[_Flight] = collections.deque()
        self._sent: collections.deque[_Flight] = collections.deque()
        self._in_flight = 0
        self._connection: Any = None
        self._receiver: _Receiver | None = None
        self._transport: Any = None
        self._reader: Any = None
        self.connecting: asyncio.Task[None] | None = None
        self.paused = False  # the server reads more slowly than we write
        self._retiring: Exception | None = None
        # By a server that was loading: sent again if everything behind them was refused, too.
        self._refused: list[_Flight] = []
        self._closing = False
        self._failures = 0
        self._cancelled = 0  # attempts to connect, one after the other
        self._heard = 0.0
        self._more = False
        self.unwanted = False
        self._watch: asyncio.TimerHandle | None = None
        self._pushes: set[asyncio.Task[Any]] = set()

    # ---- sending -----------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """It was closed since its client is garbage; commands of that may still wait in a scope."""
        return self.unwanted and self._closing

    def submit(self, batch: Batch, landed: Callable[[], None]) -> None:
        """Queue a batch, to be written at the end of the tick."""
        self._waiting.append(_Flight(batch, landed, self._loop.time()))
        self._tick.write_soon(self)

    def pump(self) -> None:
        """Write what waits, as much as the connection takes now."""
        if self._transport is None:
            if self._closing:
                self._fail_all(redis.ConnectionError("the connection was closed for good"))
            elif self._waiting and (self.connecting is None or self.connecting.done()):
                self.connecting = self._loop.create_task(self._connect())
                self.connecting.add_done_callback(self._connect_again)
            return
        idle = not self._sent and self._waiting and self._waiting[0].since - self._heard > _IDLE
        if idle and _has_news(self._transport):
            # The server may have closed it while this loop did not run: hear of that first.
            self._loop.call_later(_NEWS, self.pump)
        else:
            self._write()

    def _write(self) -> None:
        payloads: list[bytes] = []
        size = 0
        most = MAX_IN_FLIGHT if switch.batching else 1
        while (
            self._waiting and not self.paused and self._retiring is None and self._in_flight < most
        ):
            if size > MAX_WRITE:
                self._tick.write_soon(self)
                break
            flight = self._waiting.popleft()
            try:
                payloads.append(flight.batch.seal())
            except Exception as error:  # packing scripts asks the program's own encoder
                flight.batch.hand_back(error)
                flight.land()
                continue
            size += len(payloads[-1])
            self._sent.append(flight)
            self._in_flight += flight.count
        if payloads:
            if self._watch is None and self._timeout is not None:
                self._watch = self._loop.call_later(self._timeout, self._look_at_clock)
            self._transport.write(b"".join(payloads))

    # ---- receiving ---------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived."""
        self._heard = self._loop.time()
        self._reader.feed(data)
        if not self._more:  # or it has its turn already
            self._read()

    def _read_on(self) -> None:
        self._more = False
        if self._transport is not None:
            self._read()

    def _read(self) -> None:
        """Parse replies and settle the batches that are complete."""
        landed: list[_Flight] = []
        try:
            self._parse(landed)
        except redis.RedisError as error:  # that is no reply, or nobody asked for it
            self.lose(error)
        try:
            run_all(self._land, landed)
        finally:
            if landed:
                if self._retiring is None:
                    self._failures = 0
                self._go_on()

    def _parse(self, landed: list[_Flight]) -> None:
        """Distribute the replies that have arrived; append the batches that are complete."""
        gets = self._reader.gets
        not_enough, push = greeted.NOT_ENOUGH_DATA, greeted.PushNotification
        sent = self._sent
        flight: _Flight | None = None
        for _ in range(PORTION):
            if flight is None:
                if sent:
                    flight = sent[0]
                    replies, count, raw = flight.replies, flight.count, flight.raw
                else:
                    raw = _NOTHING
            try:
                reply = gets(len(replies) not in raw) if raw else gets()
            except UnicodeDecodeError as error:
                reply = error  # hiredis has taken the whole reply: the next ones are in step
            if reply is not_enough:
                return
            if type(reply) is push:
                self._pushed(reply)
                continue
            if flight is None:
                raise redis.ConnectionError("a reply came that nobody asked for")
            replies.append(reply)
            if len(replies) == count:
                landed.append(sent.popleft())
                self._in_flight -= count
                flight = None
        self._more = True
        self._loop.call_soon(self._read_on)

    def _land(self, flight: _Flight) -> None:
        first = flight.replies[0]
        refused = False
        try:
            if self._follows or isinstance(first, redis.RedisError):
                refused = self._refuses(flight, first)
        finally:  # whatever goes wrong, somebody waits for it
            if refused:
                self._refused.append(flight)
            else:
                self._settle(flight)

    def _settle(self, flight: _Flight) -> None:
        self._give_up_refused()
        try:
            flight.batch.settle(flight.replies)
        finally:
            flight.land()

    def _refuses(self, flight: _Flight, first: Any) -> bool:
        """Return whether nothing of a flight ran; where it says so, retire this connection."""
        replies = flight.replies
        if isinstance(first, redis.ConnectionError):
            # NOAUTH, LOADING, too many clients: redis-py closes the connection, and so do we.
            self._retiring = first
            return all(isinstance(reply, redis.BusyLoadingError) for reply in replies)
        if self._follows and (demoted := demotion(replies)) is not None:
            self._retiring = demoted
            return all(isinstance(reply, redis.ReadOnlyError) for reply in replies)
        if flight.batch.divided or not greeted.refused(
            self._connection, flight.batch.commands(), replies
        ):
            return False
        self._retiring = first
        flight.named = True
        return True

    def _go_on(self) -> None:
        """See what can be done now that replies have come."""
        if self._retiring is not None and not self._sent:
            self.lose(self._retiring)
        elif self._waiting:
            self.pump()
        elif self.unwanted and not self._sent and not self._closing:
            self.shut()

    def _pushed(self, reply: Any) -> None:
        task = self._loop.create_task(greeted.pushed(self._connection, reply))
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    # ---- losing ------------------------------------------------------------------------

    def doubt(self) -> None:
        """Watch what is on its way as with a `socket_timeout`, if the client has none.

        redis-py closes the connection of a command whose wait is cancelled. This one is others',
        too; but if it died without a word, as behind a firewall, nobody else would find that out.
        """
        if self._sent and self._watch is None:
            self._watch = self._loop.call_later(PATIENCE, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._watch = None
        if not self._sent:
            return
        if self._more:  # what has arrived is not read yet: this loop was busy
            self._heard = self._loop.time()
        timeout = PATIENCE if self._timeout is None else self._timeout
        left = max(self._sent[0].since, self._heard) + timeout - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look_at_clock)
        else:
            self.lose(redis.TimeoutError("Timeout reading from socket"))

    def lose(self, cause: Exception) -> None:
        """Give up this connection; a new one takes over what may be sent again."""
        self._drop_connection()
        flights = list(self._sent)
        self._sent.clear()
        if flights:  # which may have run
            self._give_up_refused()
        refused, self._refused = self._refused, []
        self._in_flight = 0
        later = Written()
        for flight in reversed(flights):
            # What the transport has taken may have been sent: it does not tell.
            flight.batch.abort(flight.replies, EVERYTHING, cause, later)
        self._again([*refused, *flights], cause)
        self.pump()
        self._go_on()

    def _give_up_refused(self) -> None:
        """Do not send again what would now come after commands that were called later."""
        refused, self._refused = self._refused, []
        for flight in refused:
            flight.give_up(flight.replies[0])
            flight.land()

    def _again(self, flights: list[_Flight], cause: Exception) -> None:
        """Queue what is left of some flights, ahead of what waits."""
        retries = self._retries
        lost = isinstance(cause, (redis.ConnectionError, redis.TimeoutError))
        if flights and lost and not greeted.tries_again(self._connection, cause):
            retries = 0
        left = []
        came_back = False
        for flight in flights:
            flight.attempts += 1
            divided = flight.batch.divided
            if flight.batch.entries and (
                divided or flight.attempts > retries >= 0 or self._closing
            ):
                flight.give_up(cause)
            came_back = came_back or (divided and bool(flight.batch.entries))
            if flight.batch.entries and not divided:
                flight.prepare()
                left.append(flight)
                resend(flight.batch.entries)
            flight.land()
        if came_back and not self._closing:
            # It is sent again by somebody else, so what waits behind it must not overtake it.
            behind = list(self._waiting)
            self._waiting.clear()
            for flight in behind:
                flight.land()
        self._waiting.extendleft(reversed(left))

    def _drop_connection(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None and self._receiver is not None:
            self._receiver.link = None
            self._failures += 1
            transport.abort()
            greeted.forget(self._connection)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._retiring = None
        self.paused = False

    # ---- opening and closing -----------------------------------------------------------

    _retries = 0

    async def _connect(self) -> None:
        connection: Any = None
        try:
            if self._failures:
                await asyncio.sleep(greeted.backoff(self._connection, self._failures))
            connection = self._make_connection()
            await connection.connect()
            if self._closing:  # and this was cancelled; wait_for() may have forgotten it
                raise LoopEnds("the connection was closed: its event loop ends")  # noqa: TRY301
            receiver = _Receiver(self)
            transport, reader = greeted.take_over(connection, receiver)
        except BaseException as error:
            if connection is not None:  # redis-py leaves it open when its greeting is cancelled
                with contextlib.suppress(redis.RedisError, OSError):
                    await connection.disconnect(nowait=True)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._fail_all(error)
            if not isinstance(error, Exception):
                raise
            return
        self._connection = connection
        self._retries = greeted.retries(connection)
        self._timeout = connection.socket_timeout
        self._cancelled = 0
        self._receiver = receiver
        self._transport, self._reader = transport, reader
        self._heard = self._loop.time()
        self.pump()

    def _connect_again(self, task: asyncio.Task[None]) -> None:
        """Connect again after somebody has cancelled every task there is; the loop may end.

        What waits is sent all the same, or who waits for it would do so for ever.
        """
        if task.cancelled() and not self._closing:
            self._cancelled += 1
            if self._cancelled <= _CANCELLATIONS:
                self.pump()
            else:
                self._fail_all(asyncio.CancelledError())

    def _make_connection(self) -> Any:
        pool = self._pool()
        if pool is None:
            raise redis.ConnectionError("the client is gone")
        return pool.make_connection()

    def _fail_all(self, error: BaseException) -> None:
        flights = list(self._waiting)
        self._waiting.clear()
        for flight in flights:
            flight.batch.hand_back(error)
            flight.land()
        self._go_on()

    def shut(self) -> None:
        """Close the connection for good; what was not answered is settled as it is."""
        self._closing = True
        if self.connecting is not None:
            self.connecting.cancel()
        gone = LoopEnds("the connection was closed: its event loop ends")
        self.lose(gone)
        self._fail_all(gone)

    def shut_when_idle(self) -> None:
        """Close the connection for good as soon as nothing is on its way."""
        self.unwanted = True
        self._go_on()

    async def landed(self) -> None:
        """Wait until everything that was handed over by now has landed."""
        self.pump()  # a task that was connecting may have been cancelled
        for flight in [*self._refused, *self._sent, *self._waiting]:
            if flight.batch.entries:
                flight.waiter = flight.waiter or self._loop.create_future()
                await asyncio.shield(flight.waiter)


def _has_news(transport: Any) -> bool:
    """Return whether something, or the end, has arrived that the event loop has not read yet."""
    if transport.is_closing():
        return True
    with _Selector() as selector:
        selector.register(transport.get_extra_info("socket").fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


# The one without a file of its own, where there is one.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)
_NOTHING: frozenset[int] = frozenset()
_IDLE = 1.0  # seconds without a reply, after which a connection is looked at before it is used
_NEWS = 0.001  # seconds in which the loop reads what has arrived
_CANCELLATIONS = 3  # of attempts to connect that are no reason to give up
