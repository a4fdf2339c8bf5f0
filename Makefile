# Two commands do everything on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN    := .venv/bin
# uv does not read pip's find-links by itself.
UV     := UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install -q -c constraints.txt

.PHONY: install demo test test-slow chaos bench bench-queue bench-web lint format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(UV) -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(UV) -e '.[test]'
	@touch $@

# The main job on embedded defaults: submit, watch it run, look at what came out, read it in Python.
demo: .venv/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	@bash scripts/browser.sh
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

# Proofs that take minutes.
test-slow: .venv/.installed-test
	$(BIN)/pytest -m slow

# Faults of all kinds at random, on SQLite and on PostgreSQL with Redis: make chaos CHAOS_MINUTES=10 CHAOS_SEED=1
CHAOS_MINUTES ?= 2
chaos: .venv/.installed-test
	CHAOS_MINUTES=$(CHAOS_MINUTES) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/pytest tests/chaos -rP

# The core against the usual pattern and the machine, 20 minutes and more: make bench BENCH="--quick --model tiny"
bench: .venv/.installed
	@$(BIN)/python -m benchmarks.core $(BENCH)

# The job system against bare Celery and the core alone, 15 minutes: make bench-queue BENCH="--quick"
bench-queue: .venv/.installed-test
	@$(BIN)/python -m benchmarks.queue $(BENCH)

# The page over very many jobs, sequences and readers, 20 minutes: make bench-web BENCH="--quick"
bench-web: .venv/.installed-test
	@$(BIN)/python -m benchmarks.web $(BENCH)

format: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
