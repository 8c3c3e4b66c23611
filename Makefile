# Each target sets itself up: a virtual environment in .venv, with Python, git and make the only things needed before.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs dist clean

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

# The docs site, into build/site; nothing is fetched once the tools are there.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mkdocs build --quiet

# What is uploaded to PyPI, checked as PyPI does.
dist: .venv/dev
	rm -rf dist
	$(BIN)/uv build --quiet
	$(BIN)/twine check --strict dist/*

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

.venv/docs: .venv/core
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]'
	touch $@

clean:
	rm -rf .venv runs build dist
