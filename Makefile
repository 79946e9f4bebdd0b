# `make help` lists the targets. Every target does its own set-up.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KAFKA := .kafka/libs/.ready
PROMETHEUS := .prometheus/.ready
BROWSER := .browser/.ready
MVN ?= mvn
LOWEST := .venv-lowest
TOOLS := .tools
MANUAL := .venv-docs
KUBERNETES := 1.34.0
# Three of them wait for brokers most of the time (tests/conftest.py).
PARALLEL := --numprocesses 4 --dist loadscope
# Compiles the loops over columns where their code is missing (detector/compiled.py); an import does.
COMPILE := $(BIN)/python -c 'import worker.processing.pipeline, detector.scoring.count_profile_loop'
CHECKED := kernels detector worker logmamba hatch_build.py tests benchmarks checkpoints deploy docs

.DEFAULT_GOAL := help
.PHONY: help setup kafka monitoring-tools browser demo test bounds-test test-lowest try-wheel faults gpu-test tools lint format docs soak bench demo-checkpoint config-schema lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY) $(KAFKA) ## fill .venv from requirements.lock and fetch the Kafka broker for the tests

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(COMPILE)
	touch $@

# Without Maven or a JDK the broker tests skip and say so (under CI=true they fail), so its absence is no error here.
$(KAFKA): tests/broker/pom.xml
	@if command -v $(MVN) >/dev/null && command -v java >/dev/null; then \
	  $(MVN) --quiet --batch-mode --file tests/broker/pom.xml dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.kafka/libs && touch $@; \
	else echo "no JDK or Maven: tests against a real Kafka broker will be skipped"; fi

kafka: $(KAFKA) ## fetch the Kafka broker for the tests (needs a JDK and Maven)

# Debian's package, unpacked and not installed, so that no service starts. Without it the tests that need it skip and say so.
$(PROMETHEUS):
	@mkdir -p $(@D)/packages && cd $(@D)/packages && if command -v apt-get >/dev/null && \
	  { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } >/dev/null 2>&1 && \
	  dpkg -x prometheus_*.deb ..; then touch ../.ready; \
	else echo "no Debian package of Prometheus: tests of alert rules and dashboard will be skipped"; fi

monitoring-tools: $(PROMETHEUS) ## fetch Prometheus for the tests of alert rules and dashboard (Debian)

# Likewise, with the libraries that it needs and this machine lacks: about 100 MB.
$(BROWSER):
	@mkdir -p $(@D)/packages/partial && cd $(@D)/packages && if command -v apt-get >/dev/null && \
	  { $(FETCH_BROWSER) || { apt-get update -qq && $(FETCH_BROWSER); }; } >/dev/null 2>&1 && \
	  for package in *.deb; do dpkg -x $$package .. || exit 1; done; then rm -f *.deb && touch ../.ready; \
	else echo "no Debian package of Chromium: tests in a browser will be skipped"; fi
FETCH_BROWSER := timeout 120 apt-get -qq --yes --no-install-recommends --download-only \
  -o Debug::NoLocking=true -o Dir::Cache::Archives=$(CURDIR)/.browser/packages install chromium-headless-shell

browser: $(BROWSER) ## fetch Chromium for the tests in a browser (Debian)

demo: $(READY) ## score generated logs with the shipped checkpoint, no Kafka needed
	$(BIN)/logmamba demo

test: setup $(PROMETHEUS) $(BROWSER) ## run every test (a real Kafka broker included)
	$(BIN)/python -m pytest $(PARALLEL)

bounds-test: setup ## run the tests of compiled loops with every index checked
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest tests/detector/test_compiled.py tests/worker/processing/test_sessions.py \
	  tests/worker/processing/test_sessions_properties.py tests/worker/processing/test_outputs.py \
	  tests/worker/processing/test_clock.py tests/worker/processing/test_origins.py \
	  tests/worker/formats/test_one_pass.py tests/worker/formats/test_json_places.py \
	  tests/detector/text/test_canonical.py tests/detector/scoring/test_count_profile.py \
	  tests/detector/scoring/test_growing_sessions.py tests/detector/quality/test_drift.py \
	  -k 'not any_course and not clock_moves'

test-lowest: $(LOWEST)/.ready $(KAFKA) ## run the tests with the oldest libraries that pyproject.toml allows (takes 6 GB)
	$(LOWEST)/bin/python -m pytest $(PARALLEL) tests/broker tests/detector tests/worker tests/benchmarks

$(LOWEST)/.ready: requirements.lowest.lock pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --require-hashes -r requirements.lowest.lock
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What is published, as a user gets it: with what pip chooses for it, in an environment with nothing else, outside the repository.
try-wheel: $(if $(WHEEL),,$(READY)) ## install the wheel (WHEEL=, else one built here) with its dependencies elsewhere and try it
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; wheel="$(abspath $(WHEEL))"; \
	if test -z "$$wheel"; then \
	  $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$$folder" .; wheel=$$(echo "$$folder"/*.whl); \
	fi; \
	$(PYTHON) -m venv "$$folder/empty"; "$$folder/empty/bin/pip" install --quiet "$$wheel"; \
	mkdir "$$folder/elsewhere"; cd "$$folder/elsewhere"; unset PYTHONPATH; logmamba="$$folder/empty/bin/logmamba"; \
	"$$logmamba" --version; "$$logmamba" example worker.example.yaml > worker.yaml; \
	"$$logmamba" check --config worker.yaml --offline; "$$logmamba" demo --lines 8000

faults: setup ## show every fault the worker survives, at full size; prints a table
	$(BIN)/python -m pytest --numprocesses 3 --dist loadscope tests/faults --faults=full --faults-table=benchmarks/results/faults.md

# A machine with a GPU may bring a PyTorch of its own: where there is no .venv, $(PYTHON) runs the tests with what it has.
gpu-test: ## run the tests of kernels, detector and worker on a CUDA device
	@python=$$(test -e $(READY) && echo $(BIN)/python || echo $(PYTHON)); \
	$$python -c 'import sys; from importlib.metadata import distributions; any(distributions(name="logmamba")) or sys.exit(f"gpu-test: logmamba is not installed; run: {sys.executable} -m pip install --no-deps --editable .")' && \
	$$python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu-test: PyTorch finds no CUDA device here")' && \
	$$python -m pytest tests/kernels tests/detector tests/worker/processing/test_devices.py

tools: $(TOOLS)/.ready ## fetch what checks deploy/: helm, kubeconform, hadolint (needs Go, takes minutes)

# A folder of commands, and one of the schemas of Kubernetes, which refer to a web site where they come from.
$(TOOLS)/.ready: $(READY) tests/deploy/tools.txt
	rm -rf $(TOOLS) && mkdir -p $(TOOLS)/bin
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --target $(TOOLS)/python -r tests/deploy/tools.txt
	mv $(TOOLS)/python/bin/hadolint $(TOOLS)/bin
	mv $(TOOLS)/python/kubernetes_validate/kubernetes-json-schema/v$(KUBERNETES)-local-strict $(TOOLS)/schemas
	sed --in-place -e 's#/api/_definitions.json#_definitions.json#' -e 's/"$$id"/"$$comment"/' $(TOOLS)/schemas/*.json
	rm -r $(TOOLS)/python
	GOBIN=$(CURDIR)/$(TOOLS)/bin go install github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0
	GOBIN=$(CURDIR)/$(TOOLS)/bin go install helm.sh/helm/v3/cmd/helm@v3.19.5
	touch $@

lint: $(READY) ## check style and types; changes nothing
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

format: $(READY) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix-only --quiet $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

docs: $(READY) $(MANUAL)/.ready ## build the manual into site/, strictly
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(MANUAL)/bin/mkdocs build --quiet
	@! grep -rnoE '<(script|img|iframe)[^>]* src="?(https?:)?//[^"> ]*|<link [^>]*rel="?(stylesheet|preconnect|icon)[^>]*href="?(https?:)?//[^"> ]*' site --include=*.html || { echo "docs: a page fetches something from another host"; exit 1; }

# The manual is built with libraries of its own: the worker needs none of them.
$(MANUAL)/.ready: docs/requirements.lock
	test -x $(MANUAL)/bin/python || $(PYTHON) -m venv $(MANUAL)
	$(MANUAL)/bin/python -m pip install --quiet --require-hashes -r docs/requirements.lock
	touch $@

soak: setup ## run a worker for MINUTES=30 and see whether its memory stays flat
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

bench: setup ## run the benchmarks; each prints a table and writes JSON
	set -e; for name in $(filter-out soak,$(basename $(notdir $(wildcard benchmarks/*.py)))); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

demo-checkpoint: $(READY) ## train checkpoints/demo anew on generated logs
	$(BIN)/python -m checkpoints.train_demo

config-schema: $(READY) ## write config/worker.schema.json anew from the settings
	$(BIN)/python -m worker.settings.json_schema > config/worker.schema.json.new
	mv config/worker.schema.json.new config/worker.schema.json

RESOLVE := uv pip compile pyproject.toml --group dev --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --no-header --constraint requirements.constraints --upgrade
lock: ## resolve requirements.lock, requirements.lowest.lock and docs/requirements.lock anew (needs uv)
	$(RESOLVE) --output-file requirements.lock
	$(RESOLVE) --resolution lowest-direct --output-file requirements.lowest.lock
	echo mkdocs-material | uv pip compile - --generate-hashes --universal --python-version 3.11 --no-emit-index-url \
	  --no-header --no-annotate --upgrade --output-file docs/requirements.lock

clean: ## remove what the targets above made
	rm -rf $(VENV) $(LOWEST) $(TOOLS) $(MANUAL) site .kafka .prometheus .browser .pytest_cache .mypy_cache .ruff_cache .hypothesis
