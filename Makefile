# Every target does its own set-up: `make demo` and `make test` work in a fresh clone with nothing but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench format pictures clean

# Merge two tiny FLUX checkpoints, sample before and after, write demo/index.html
demo: $(READY)
	$(BIN)/fluxsmith demo -o demo --force

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

# Style, types, and the direction of imports
check: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_house.py

# The tables of docs/benchmarks.md, beside sd-mecha and mergekit in an environment of their own
bench: $(READY) .venv-bench/.ready
	$(BIN)/python -m benchmarks

# The pictures of the documentation, made by its own snippets
pictures: $(READY)
	FLUXSMITH_PICTURES=1 $(BIN)/python -m pytest tests/test_docs.py -k snippet

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# torch first and pinned: a version that is not pinned brings gigabytes of CUDA packages.
$(READY): pyproject.toml constraints/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt -e '.[dev]'
	touch $@

.venv-bench/.ready: constraints/bench.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -c constraints/bench.txt torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet -c constraints/bench.txt sd-mecha mergekit
	touch $@

clean:
	rm -rf $(VENV) .venv-bench demo build dist src/*.egg-info
