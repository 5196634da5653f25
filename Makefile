# Two commands: `make run` and `make test`. Both set up .venv first (make install) and are quick after the first time.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# A file of tests stays in one process, which loads what its tests share once. One more than cores: some wait.
# The order is that of tests/conftest.py.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
EXTRAS := llamacpp,transformers,train,merge,ui,space,otel,dev
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED ?= False
# Python keeps its bytecode even where the environment says not to: without it every process compiles torch and gradio anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install install-transformers run check quick test coverage test-setup test-lowest test-newest lock outdated security audit fuzz soak mutants clients doors cluster-test vllm-test peers screenshots docs fix clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 14

install: $(VENV)/.installed ## Set up .venv with the server, the UI and the embedded model

$(VENV)/.transformers: $(VENV)/.installed requirements/transformers.txt
	@requirements/install.sh transformers.txt
	@touch $@

install-transformers: $(VENV)/.transformers ## Add the transformers engine, for checkpoints in safetensors

run: install ## Serve the embedded default on http://127.0.0.1:7860 (HOST, PORT override)
	@exec $(BIN)/router-backend serve

check: test-setup ## Lint, format and types: seconds
	@echo "ruff";   $(BIN)/ruff check --quiet . ; $(BIN)/ruff format --check --quiet .
	@echo "mypy";   $(BIN)/mypy

quick: test-setup ## The tests that need no real model, no browser and no torch
	@$(PYTEST) $(PARALLEL) -m "not real and not browser and not slow and not torch"

test: check security ## Set up and run every check and test
	@echo "pytest"; $(PYTEST) $(PARALLEL) --durations=20

coverage: test-setup ## Run every test, and show the lines that none runs
	@$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered --cov-fail-under=95

test-lowest: test-setup ## Run the tests on the oldest packages that pyproject.toml allows
	@$(call test-on,lowest-direct)

test-newest: test-setup ## Run the tests on the newest packages that pyproject.toml allows
	@$(call test-on,highest)

# The ends of the ranges, in an environment of their own. The environment variables of `make` reach the tests.
define test-on
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/$(1); \
	ln -s ../litellm $(VENV)/$(1)/litellm; \
	$(BIN)/uv pip install --quiet --python $(VENV)/$(1) --resolution $(1) --editable '.[$(EXTRAS)]'; \
	$(BIN)/uv pip install --quiet --python $(VENV)/$(1) --no-deps --require-hashes --requirement requirements/embedded.txt; \
	$(BIN)/uv pip list --quiet --python $(VENV)/$(1) --format freeze > $(VENV)/$(1).txt; \
	echo "the packages are listed in $(VENV)/$(1).txt"; \
	$(VENV)/$(1)/bin/python -m pytest $(PARALLEL) -m "not browser"
endef

lock: test-setup ## Make the locks in requirements/ and the Space's requirements.txt anew
	@requirements/lock.sh

outdated: install ## Show which locked packages have a newer release
	@$(BIN)/uv pip list --outdated --python $(BIN)/python

security: test-setup ## Look for unsafe code and for secrets
	@echo "bandit"; $(BIN)/bandit --quiet --configfile pyproject.toml --recursive router_backend router_tools app.py
	@echo "secrets"; git ls-files -z --cached --others --exclude-standard ':!requirements' ':!requirements.txt' | xargs -0 \
	  $(BIN)/detect-secrets-hook --disable-plugin KeywordDetector --disable-plugin HexHighEntropyString

audit: test-setup ## Compare the installed packages with the known vulnerabilities (needs the network)
	@$(BIN)/pip-audit --progress-spinner off --skip-editable

fuzz: test-setup ## Send 20,000 requests made of our own OpenAPI, and 300 schemas and chat bodies to the embedded model
	@$(BIN)/python -m tests.fuzz 20000
	@$(BIN)/python -m tests.fuzz sweep 300

soak: test-setup ## 15 minutes of different requests, with the echo engine and with the embedded model
	@$(BIN)/python benchmarks/soak.py --minutes 3 --engine echo
	@$(BIN)/python benchmarks/soak.py --minutes 12 --engine embedded

mutants: test-setup ## Take each fault's fix out and see its tests fail
	@$(BIN)/python -m tests.mutants

clients: install $(VENV)/clients/.installed $(VENV)/clients-older/.installed $(VENV)/clients-node/.installed ## Ask the embedded model with clients that people use, in Python and JavaScript (needs npm)
	@$(BIN)/python -m tests.clients

cluster-test: test-setup $(VENV)/cluster/.installed ## Two nodes of a Ray cluster here: the contract, growth, faults, updates, and what its proxy costs
	@DOORS=cluster CLUSTER_PYTHON=$(abspath $(VENV)/cluster/bin/python) $(PYTEST) tests/server/test_contract.py
	@PYTHONPATH=. $(VENV)/cluster/bin/python -W ignore benchmarks/cluster.py

doors: test-setup $(VENV)/cluster/.installed $(VENV)/vllm/.installed ## The contract through every door: with the trained model, behind llama-server and vLLM, on a cluster
	@DOORS=plain,zerogpu,embedded,llama-server,vllm,cluster CLUSTER_PYTHON=$(abspath $(VENV)/cluster/bin/python) \
	  $(PYTEST) tests/server/test_contract.py

vllm-test: test-setup $(VENV)/vllm/.installed ## Set up vLLM for processors and run the upstream engine's tests against it (needs the index, minutes)
	@$(BIN)/python -m tests.vllm

PEERS := peer-llamacpp peer-transformers peer-openvino vllm

peers: $(VENV)/.test-installed ## Measure ours beside llama.cpp, vLLM, transformers and OpenVINO: about an hour (SECOND=ADAPTER, PEERS_OPTIONS=--quick or --docs)
	@for each in $(PEERS); do $(MAKE) --no-print-directory $(VENV)/$$each/.installed || echo "make: measuring without $$each"; done
	@PYTHONPATH=.:benchmarks $(BIN)/python -W ignore -m peers $(if $(SECOND),--second $(SECOND)) $(PEERS_OPTIONS)

screenshots: test-setup ## Take the three pictures of the UI that the README shows
	@$(BIN)/python benchmarks/screenshots.py

docs: test-setup ## Make docs/settings.md and .env.example out of the settings
	@$(BIN)/python -m router_tools.settings_page

fix: test-setup ## Format and mend what ruff can mend
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

test-setup: $(VENV)/.test-installed $(VENV)/litellm/.installed
	@bash tests/fakes/find_chromium.sh > /dev/null

$(VENV)/.installed: pyproject.toml requirements/install.sh requirements/tools.txt requirements/server.txt requirements/embedded.txt \
    $(wildcard router_backend/checkpoints/embedded/adapter/*)
	@echo "make: setting up $(VENV) (half a minute the first time)"
	@requirements/install.sh server.txt embedded.txt
	@echo "make: merging the embedded router, checked against its hash"
	@$(BIN)/python -c 'from router_backend.checkpoints.embedded import checkpoint; checkpoint()'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed requirements/test.txt
	@echo "make: installing what the tests need (torch among it)"
	@UV_COMPILE_BYTECODE=1 requirements/install.sh test.txt
	@touch $@

# Ray, and this package as the replicas import it.
$(VENV)/cluster/.installed: requirements/cluster.txt pyproject.toml $(VENV)/.installed
	@echo "make: installing Ray Serve"
	@VENV=$(VENV)/cluster PYTHON=$(BIN)/python requirements/install.sh tools.txt cluster.txt embedded.txt
	@touch $@

# Clients, each with the packages that it wants: litellm for the tests, the others for `make clients`.
$(VENV)/%/.installed: requirements/%.txt $(VENV)/.installed
	@echo "make: installing $*.txt"
	@VENV=$(VENV)/$* ONLY_LOCKS=1 PYTHON=$(BIN)/python requirements/install.sh $*.txt
	@touch $@

$(VENV)/clients-node/.installed: tests/clients/package.json tests/clients/package-lock.json
	@command -v npm > /dev/null || { echo "make: install Node.js 20 or later, which has npm" >&2; exit 1; }
	@echo "make: installing the JavaScript clients"; mkdir -p $(@D); cp $^ $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null
	@touch $@

$(VENV)/vllm/.installed: requirements/vllm.sh
	@echo "make: setting up vLLM"; requirements/vllm.sh $(VENV)/vllm
	@touch $@

clean: ## Remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist *.egg-info
