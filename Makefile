# Each target sets up what it needs. `make test PYTHON=python3.13` takes another interpreter.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin

# The demo's settings: milliseconds each way, the page's port, 1 to end after the table, 1 for a
# cluster.
RTT ?= 1
PORT ?= 8000
ONCE ?=
CLUSTER ?=

# Processes that share the tests; 0 runs them in one, as for a debugger.
WORKERS ?= 3

.PHONY: run test test-core test-lowest check format soak bench examples libraries clean

# With what the demo needs alone, unless there is all of it anyway.
DEMO_VENV := $(VENV)$(if $(wildcard $(VENV)/ready),,-demo)

run: $(DEMO_VENV)/ready
	@exec $(DEMO_VENV)/bin/python -m autobatch demo --rtt $(RTT) --port $(PORT) $(if $(ONCE),--once) $(if $(CLUSTER),--cluster)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# What needs no server, with little to install: for every other interpreter of the machine.
test-core: $(VENV)-core/ready
	$(VENV)-core/bin/python -m pytest -m "not server" $(ARGS)

# The suite on the lowest versions that are supported; ARGS='-m "not once"' leaves out what is slow.
test-lowest: $(VENV)-lowest/ready
	$(VENV)-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Random programs under random faults, held against a model: ARGS="--minutes 1 --seed 7". With
# CLUSTER=1 a cluster under load, while slots move, nodes fail and connections break.
soak: $(VENV)/ready
	$(BIN)/python -m soak$(if $(CLUSTER),.cluster) $(ARGS)

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m bench $(ARGS)

examples: $(VENV)/ready
	$(BIN)/python -m pytest tests/test_examples.py $(ARGS)

# What docs/libraries.md says of other libraries, from running them.
libraries: $(VENV)/ready
	PYTHONPATH=tests $(BIN)/python -m libraries --write

clean:
	rm -rf .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/ready: WANTED = . --group dev
$(VENV)-demo/ready: WANTED = '.[demo]'
$(VENV)-core/ready: WANTED = . --group core-test
$(VENV)-lowest/ready: WANTED = . --group test --group lowest

$(VENV)/ready $(VENV)-demo/ready $(VENV)-core/ready $(VENV)-lowest/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable $(WANTED)
	@# redis-om brings stubs of redis-py 4, which would hide from mypy what redis-py says itself.
	@$(@D)/bin/python -m pip uninstall -qq --yes types-redis types-pyOpenSSL
	@touch $@
