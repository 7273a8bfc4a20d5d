# Every target makes what it needs, starting from a bare Python 3.11: `make demo` and `make test` are the whole set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_WORLD := $(VENV)/.installed-world

.PHONY: demo test format-check lint types layers tests format world bench clean

demo: $(INSTALLED)
	$(BIN)/immunity demo

test: format-check lint types layers tests

format-check: $(INSTALLED)
	$(BIN)/ruff format --check .

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

# One process a core and one thread each: the models are tiny, and threads that wait for one another gain nothing.
tests: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains the embedded world from nothing (hours); each stage resumes from its last checkpoint.
world: $(INSTALLED_WORLD)
	$(BIN)/python studies/emoji_world/build.py --budget full --ship

# Speed and memory beside the straightforward loops, on the embedded world; benchmarks/run.py --help for other sizes.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py --size emoji --batch 4 --publish

# torch by exact version and on its own line: see CONTRIBUTING.md, "Two traps of the set-up".
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "immunity needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	touch $@

$(INSTALLED_WORLD): $(INSTALLED)
	$(BIN)/pip install --disable-pip-version-check -e '.[dev,world]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
