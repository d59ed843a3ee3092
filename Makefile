# One virtual environment, made when a target needs it and again when pyproject.toml changes.

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.made
SEED   ?= $(shell date +%s)

.DELETE_ON_ERROR:
.PHONY: all setup lint fix test test-nightly mutants bench docs demo clean

all: lint test

setup: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old: qntx-es needs 3.11 or newer. Try: make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Nothing is modified here; `make fix` does that.
lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

fix: $(STAMP)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test: $(STAMP)
	$(BIN)/pytest -n 3 --dist worksteal --qntx-require-faults

# Random where `test` is fixed. The seed stands in the command: repeat a night with SEED=…
# pytest loads our own plugin before any other, so what measures must have begun before pytest.
test-nightly: $(STAMP)
	$(BIN)/coverage run -m pytest -m '' --qntx-require-faults -o faulthandler_timeout=3600 \
	  --hypothesis-profile=qntx-nightly --hypothesis-seed=$(SEED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# An hour or two. One module: make mutants OF=qntx_es.log.*
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(BIN)/mutmut run --max-children 2 $(OF)
	$(BIN)/mutmut results

bench: $(STAMP)
	@set -e; for benchmark in benchmarks/append.py benchmarks/ax.py benchmarks/projection.py \
	    benchmarks/rebuild.py benchmarks/latency.py benchmarks/faults.py; do \
	  echo "$$benchmark"; $(BIN)/python "$$benchmark"; done

docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b doctest docs docs/_build/doctest

# A repository of your own: make demo REPO=/path
demo: $(STAMP)
	@mkdir -p .demo
	$(BIN)/qntx-es --database sqlite:///.demo/qntx.db demo $(REPO)
	@echo; echo "Decisions in eventsourcing, on the same kind of log (examples/budget.py):"
	@$(BIN)/python examples/budget.py

# The virtual environment stays; `rm -rf .venv` if that is what you want.
clean:
	rm -rf .demo dist docs/_build mutants .coverage .coverage.* .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
