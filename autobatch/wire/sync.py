"""Exchanges of synchronous clients: one write, and the reading of all its replies."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import redis
from redis.connection import ConnectionPool

from autobatch.batch import EVERYTHING, Batch, resend, settle_lost
from autobatch.command import Command, Script
from autobatch.promise import Failure, run_all
from autobatch.wire import connection as link
from autobatch.wire.server import demotion, follows_primary, server_of


class Wire:
    """Where the batches of one client travel: a pooled connection for each exchange.

    Clients on one pool share one wire, so their commands share one batch. A client with a
    connection of its own (`single_connection_client`) has a wire of its own.

    Attributes:
        server: equal for wires to the same data.
        place: in the order in which several threads wait for connections of several wires: that
            of the pool, which several wires may share.
        retry_writes: what may have run is sent again even if it writes.
        pack: returns a command's bytes.
        pack_fast: the same, but fails with any error on what is unusual.
        decodes: whether the client wants text.
        decode: decodes a reply that was read as bytes.
        scripts: those whose source is known, by digest.
    """

    asynchronous = False
    divides = False

    def __init__(
        self,
        pool: ConnectionPool,
        connection: Any | None = None,
        lock: threading.RLock | None = None,
        *,
        retry_writes: bool = False,
    ) -> None:
        self.retry_writes = retry_writes
        self._pool = pool
        self._connection = connection
        self._lock = lock
        self.place = id(lock or pool)
        self.server = server_of(pool)
        self.follows = follows_primary(pool)
        self.pack, self.pack_fast = link.packers(pool)
        encoder = pool.get_encoder()
        self.decodes: bool = encoder.decode_responses
        self.decode = link.decoder(encoder)
        self.scripts: dict[str, Script] = {}

    def problem_of(self, _: Sequence[Command]) -> str | None:
        """Return why some commands cannot be one transaction: on one server they can."""
        return None

    def acquire(self) -> Any:
        """Return a connected connection that nobody else uses until `release`.

        Raises:
            redis.ConnectionError: there is none to be had.
        """
        if self._connection is None:
            try:
                return self._pool.get_connection()
            except redis.RedisError:
                raise
            except BaseException:
                # Of the program's own, or an interruption: redis-py takes the connection back as
                # it is then, perhaps not logged in, or with replies to its greeting unread.
                link.close_idle(self._pool)
                raise
        assert self._lock is not None
        self._lock.acquire()
        try:
            if self._connection.pid != os.getpid():  # a fork: leave the parent's socket alone
                self._connection.disconnect()
                self._connection.pid = os.getpid()
            self._connection.connect()
            try:
                self._connection.can_read()  # fails if the server has closed it meanwhile
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                self._connection.disconnect()
                self._connection.connect()
        except BaseException:
            try:
                self._connection.disconnect()  # it may not have been greeted whole
            finally:
                self._lock.release()
            raise
        return self._connection

    def release(self, connection: Any) -> None:
        """Give back what `acquire` returned."""
        if self._connection is None:
            self._pool.release(connection)
            return
        assert self._lock is not None
        try:
            if connection.should_reconnect():
                connection.disconnect()
        finally:
            self._lock.release()

    def divide(self, batch: Batch) -> list[Batch]:
        """Return what to send on which connection; of one server all on one."""
        return [batch]

    def send_again(self, flights: list[Flight]) -> tuple[int, int]:
        """Send what is left, as often as the client's `Retry` says.

        Returns:
            How often the network was waited for, and how many exchanges that took.
        """
        (flight,) = flights
        again = _send_again(flight)
        return again, again


def call(command: Command) -> Any:
    """Run one command at once and return its value, or raise its error."""
    exchange([Batch(command.wire, [command])])
    outcome = command.outcome
    if type(outcome) is Failure:
        raise outcome.error
    return outcome


class Flight:
    """One batch on its way over one connection."""

    __slots__ = (
        "_count",
        "_entries",
        "_landed",
        "_raw",
        "batch",
        "connection",
        "failure",
        "refusals",
        "replies",
        "written",
    )

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.connection: Any | None = None
        self.replies: list[Any] = []
        self.refusals: list[Any] | None = None  # replies, where nothing ran: see `retry_on_error`
        self.written = 0
        self.failure: BaseException | None = None
        self._landed = False
        self._entries = batch.entries
        self._count, self._raw = batch.expected()

    @property
    def complete(self) -> bool:
        """Whether every reply was read, so that the connection is clean."""
        return self.failure is None and len(self.replies) == self._count

    def acquire(self) -> None:
        try:
            self.connection = self._wire.acquire()
        except (redis.RedisError, OSError) as error:
            self.failure = error
        except Exception as error:
            # If it is none of a closed connection, it is of the program's own: a credential
            # provider, a redis_connect_func. What goes elsewhere goes on.
            self.failure = link.closed_elsewhere(error) or error
            if self.failure is not error:
                self.failure.__cause__ = error

    def write(self) -> None:
        if self.failure is not None or self.connection is None:
            return
        try:
            payload = self.batch.seal()
            link.write(self.connection, payload)
            self.written = len(payload)
        except link.BrokenWrite as error:
            self.written = error.written
            self.failure = error.cause
        except BaseException:
            self.written = EVERYTHING  # interrupted: nobody can tell
            raise

    def read(self) -> None:
        if self.failure is not None or self.connection is None:
            return
        try:
            link.read(self.connection, self._count, self._raw, self.replies)
        except link.UnexpectedReply:
            self.connection.disconnect()
        except redis.RedisError as error:
            self.failure = error
            return
        first = self.replies[0]
        if self._wire.follows or isinstance(first, redis.RedisError):
            self._look_for_trouble(first)

    def _look_for_trouble(self, first: Any) -> None:
        if isinstance(first, redis.ConnectionError):
            self._refused(first)
            return
        if self._wire.follows:
            self._look_for_demotion()
        if self.failure is None and not self.batch.divided:
            self._look_for_refusals()

    def _refused(self, error: redis.ConnectionError) -> None:
        # NOAUTH, LOADING, too many clients: redis-py closes the connection, and so do we.
        assert self.connection is not None
        self.connection.disconnect()
        if all(isinstance(reply, redis.BusyLoadingError) for reply in self.replies):
            # Nothing ran. Sending everything again, in order, is as good as the first time.
            self.failure = error
            self.replies = []
            self.written = 0

    def _look_for_refusals(self) -> None:
        if link.refused(self.connection, self.batch.commands(), self.replies):
            self.failure = self.replies[0]
            self.refusals, self.replies = self.replies, []
            self.written = 0

    def _look_for_demotion(self) -> None:
        error = demotion(self.replies)
        if error is not None:
            assert self.connection is not None
            self.connection.disconnect()  # the next one asks Sentinel
            if all(isinstance(reply, redis.ReadOnlyError) for reply in self.replies):
                self.failure = error
                self.replies = []
                self.written = 0

    def release(self) -> None:
        if self.connection is None:
            return
        if not self.complete:
            self.connection.disconnect()
        self._wire.release(self.connection)

    def land(self) -> None:
        """Settle what can be settled, once, now that the connection is out of our hands."""
        if self._landed:
            return
        entries = self.batch.entries
        try:
            if self.failure is None:
                self.batch.settle(self.replies)
            else:
                self.batch.abort(self.replies, self.written, self.failure)
        finally:  # interrupted, they see to the rest, once they have begun
            self._landed = self.batch.entries is not entries

    def interrupt(self, error: BaseException) -> None:
        """Settle everything, since `error` ends the exchange, wherever it is."""
        if not self.complete and self.failure is None:
            self.failure = error
        self.land()
        self.batch.give_up(error)
        settle_lost(self._entries, error, sent=self.written > 0)

    @property
    def _wire(self) -> Wire:
        wire: Wire = self.batch.wire
        return wire


def exchange(batches: list[Batch]) -> tuple[int, int]:
    """Send batches at the same time and settle every command of theirs.

    All are written before any is read: several servers cost the time of the slowest one. What
    certainly did not run, and what only reads, is sent again as often as the client's own
    `Retry` says; nothing else is.

    Args:
        batches: of different wires.

    Returns:
        How often the network was waited for, and how many exchanges that took.
    """
    called = [batch.entries for batch in batches]
    flights: list[Flight] = []
    round_trips = 1
    try:
        journeys = [
            (batch.wire, [Flight(part) for part in batch.wire.divide(batch)]) for batch in batches
        ]
        flights = [flight for _, own in journeys for flight in own]
        exchanges = len(flights)
        fly(flights)
        for wire, own in journeys:
            for flight in own:
                if flight.batch.entries:
                    waits, more = wire.send_again(own)
                    round_trips += waits
                    exchanges += more
                    break
    except BaseException as error:  # what is left will not be sent again
        for flight in flights:
            flight.interrupt(error)
        for batch, entries in zip(batches, called, strict=True):
            batch.entries = []
            settle_lost(entries, error, sent=False)  # it was about to be divided
        raise
    return round_trips, exchanges


def fly(flights: list[Flight]) -> None:
    """Write all, then read all, then settle what can be settled.

    A connection that fails is kept in its flight. Anything else, an interruption above all, ends
    them all and is raised.
    """
    try:
        try:
            # Always in the same order, so that two threads cannot wait for each other's pool.
            for flight in sorted(flights, key=_pool_order) if len(flights) > 1 else flights:
                flight.acquire()
            for flight in flights:
                flight.write()
            for flight in flights:
                flight.read()
        finally:
            run_all(Flight.release, flights)
        run_all(Flight.land, flights)
    except BaseException as error:
        for flight in flights:
            flight.interrupt(error)
        raise


def _pool_order(flight: Flight) -> int:
    place: int = flight.batch.wire.place
    return place


def _send_again(flight: Flight) -> int:
    """Send what is left of a batch under the client's retry policy; return how often it was."""
    batch, connection, failure = flight.batch, flight.connection, flight.failure
    assert failure is not None
    if connection is None:
        # Connecting has its own retries; they are used up.
        batch.give_up(failure)
        return 0
    attempts = 0
    latest = flight

    def attempt() -> None:
        nonlocal attempts, failure, latest
        if failure is not None:  # the first attempt was made already: let the policy count it
            first, failure = failure, None
            raise first
        attempts += 1
        resend(batch.entries)
        again = latest = Flight(batch)
        fly([again])
        if again.connection is None and again.failure is not None:
            batch.give_up(again.failure)
        elif again.failure is not None and batch.entries:
            raise again.failure

    try:
        connection.retry.call_with_retry(attempt, lambda _: None)
    except (redis.RedisError, OSError) as error:
        if latest.refusals is None:
            batch.give_up(error)
        else:
            batch.settle(latest.refusals)
    except BaseException as error:
        batch.give_up(error)
        raise
    return attempts
