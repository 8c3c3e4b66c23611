# Each target sets itself up: a virtual environment in .venv, with Python, git and make the only things needed before.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

# The demo needs only the core.
demo: .venv/core
	$(BIN)/das3 demo --out runs/demo

# The tests also need the libraries whose models das3 adapts.
test: .venv/dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# uv picks a torch and a torchvision that fit each other.
.venv/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	touch $@

.venv/core: .venv/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
