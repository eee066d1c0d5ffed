# make demo   the main job on the embedded simulator, from nothing to served candidates
# make test   all tests (the real-data ones too where RECSYS_DATA is set)
# make check  format, lint, spelling, types, import directions, sizes, names, docstring examples
# make docs   the documentation site, into build/site
# make bench  every benchmark; result tables go to tests/benchmarks/results
# make bench-gpu  what the project does on one GPU, within six minutes; ARGS=--cpu-smoke: the same code, tiny, on a CPU
# make examples  docs/examples under real Airflow and Dagster, each in an environment of its own below build/examples
# The first two create .venv when it is missing, and reuse it when it is there.

PYTHON ?= python3
FLAVOUR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
# test processes, one thread each
WORKERS ?= 2
READY := $(VENV)/.installed-$(FLAVOUR)
NATIVE := $(VENV)/.native
BYTECODE := $(VENV)/.bytecode
SOURCES := $(shell find recsys features pipelines serving -name '*.py')
# compute threads: more of them than cores make small kernels many times slower, and spinning ones slower still
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: help install demo test fast check docs format hooks bench bench-gpu notebook journey examples lock clean

help:
	@sed -n '1,8p' Makefile

install: $(READY) $(NATIVE) $(BYTECODE)

$(READY): pyproject.toml requirements/$(FLAVOUR).txt requirements/lock.txt requirements/stubs/fbgemm-gpu/pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ($(FLAVOUR)); a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/$(FLAVOUR).txt 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

# optional: without a C++ compiler this says so, and decoding runs in pure PyTorch
$(NATIVE): $(wildcard recsys/native/*.cpp recsys/native/*.h) recsys/native/__init__.py $(READY)
	@$(BIN)/python -m recsys.native
	@touch $@

# every command starts half a second earlier where it may not keep byte code itself
$(BYTECODE): $(SOURCES) $(READY)
	@$(BIN)/python -m pipelines.engine.compiled
	@touch $@

demo: $(READY) $(NATIVE) $(BYTECODE)
	$(BIN)/recsys demo

test: $(READY) $(NATIVE) $(BYTECODE)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

fast: $(READY) $(NATIVE) $(BYTECODE)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not data"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m tests.architecture
	$(BIN)/pre-commit validate-config
	$(BIN)/python -m pytest --doctest-modules recsys features pipelines serving docs/_build
	$(MAKE) docs

# strict: a warning or a broken link fails; the pages are made from code and result files (docs/_build)
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site: build/site/index.html; its search needs a server: python -m http.server --directory build/site"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# every commit then runs the quick part of `make check`; takes it back: .venv/bin/pre-commit uninstall
hooks: $(READY)
	$(BIN)/pre-commit install

journey: $(READY) $(NATIVE)
	$(BIN)/python -m pytest -s tests/journey

bench: $(READY) $(NATIVE)
	$(BIN)/python -m tests.benchmarks

# not through $(READY): a GPU machine may have a PyTorch of its own, and then PY=python3 names it
PY ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
bench-gpu:
	$(PY) -W ignore -m tests.benchmarks.gpu $(ARGS)

notebook: $(READY) $(NATIVE)
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

# versions that the examples were tried with; pip takes about two minutes
AIRFLOW ?= apache-airflow==3.3.2
DAGSTER ?= dagster==1.13.29
build/examples/airflow/.installed: PACKAGE := $(AIRFLOW)
build/examples/dagster/.installed: PACKAGE := $(DAGSTER)
build/examples/%/.installed: $(READY)
	@$(BIN)/python -m venv build/examples/$*
	@echo "installing $(PACKAGE) into build/examples/$*"
	@build/examples/$*/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGE)
	@touch $@

examples: build/examples/airflow/.installed build/examples/dagster/.installed
	$(BIN)/python -m pytest tests/docs/test_examples.py

lock: $(READY)
	@{ sed -n '1,2p' requirements/lock.txt; $(BIN)/python -m pip freeze --all | grep -v -i -E '^-e|@|^recsys-gen|^pip==|^fbgemm' | sed 's/+cpu$$//'; } > requirements/lock.new
	@mv requirements/lock.new requirements/lock.txt

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
