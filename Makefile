# `make help` lists the targets. Every target does its own set-up.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KAFKA := .kafka/libs/.ready
MVN ?= mvn
LOWEST := .venv-lowest
# A process a core; tests/conftest.py says which tests keep to one process.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadscope
CHECKED := kernels detector worker tests benchmarks checkpoints

.DEFAULT_GOAL := help
.PHONY: help setup kafka demo test test-lowest faults gpu-test lint format soak bench demo-checkpoint lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY) $(KAFKA) ## fill .venv from requirements.lock and fetch the Kafka broker for the tests

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Without Maven or a JDK the broker tests skip and say so (under CI=true they fail), so its absence is no error here.
$(KAFKA): tests/broker/pom.xml
	@if command -v $(MVN) >/dev/null && command -v java >/dev/null; then \
	  $(MVN) --quiet --batch-mode --file tests/broker/pom.xml dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.kafka/libs && touch $@; \
	else echo "no JDK or Maven: tests against a real Kafka broker will be skipped"; fi

kafka: $(KAFKA) ## fetch the Kafka broker for the tests (needs a JDK and Maven)

demo: $(READY) ## score generated logs with the shipped checkpoint, no Kafka needed
	$(BIN)/logmamba demo

test: setup ## run every test (a real Kafka broker included)
	$(BIN)/python -m pytest $(PARALLEL)

test-lowest: $(LOWEST)/.ready $(KAFKA) ## run the tests with the oldest libraries that pyproject.toml allows (takes 6 GB)
	$(LOWEST)/bin/python -m pytest $(PARALLEL) tests/broker tests/detector tests/worker tests/benchmarks

$(LOWEST)/.ready: requirements.lowest.lock pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --require-hashes -r requirements.lowest.lock
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

faults: setup ## show every fault the worker survives, at full size; prints a table
	$(BIN)/python -m pytest tests/faults --faults=full --faults-table=benchmarks/results/faults.md

# A machine with a GPU may bring a PyTorch of its own: where there is no .venv, $(PYTHON) runs the tests with what it has.
gpu-test: ## run the tests of kernels, detector and worker on a CUDA device
	@python=$$(test -e $(READY) && echo $(BIN)/python || echo $(PYTHON)); \
	$$python -c 'import sys; from importlib.metadata import distributions; any(distributions(name="logmamba")) or sys.exit(f"gpu-test: logmamba is not installed; run: {sys.executable} -m pip install --no-deps --editable .")' && \
	$$python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu-test: PyTorch finds no CUDA device here")' && \
	$$python -m pytest tests/kernels tests/detector tests/worker/processing/test_devices.py

lint: $(READY) ## check style and types; changes nothing
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

format: $(READY) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix-only --quiet $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

soak: setup ## run a worker for MINUTES=30 and see whether its memory stays flat
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

bench: setup ## run the benchmarks; each prints a table and writes JSON
	set -e; for name in $(filter-out soak,$(basename $(notdir $(wildcard benchmarks/*.py)))); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

demo-checkpoint: $(READY) ## train checkpoints/demo anew on generated logs
	$(BIN)/python -m checkpoints.train_demo

RESOLVE := uv pip compile pyproject.toml --group dev --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --no-header --constraint requirements.constraints --upgrade
lock: ## resolve requirements.lock and requirements.lowest.lock anew (needs uv)
	$(RESOLVE) --output-file requirements.lock
	$(RESOLVE) --resolution lowest-direct --output-file requirements.lowest.lock

clean: ## remove what the targets above made
	rm -rf $(VENV) $(LOWEST) .kafka .pytest_cache .mypy_cache .ruff_cache .hypothesis
