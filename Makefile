# make repro: set up and run the pipeline.  make test: lint, types, all tests.
# The plain commands behind each target stand in the README.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
PORT ?= 5000
RUN := PATH="$(VENV)/bin:$$PATH" DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
PIP := "$(VENV)/bin/python" -m pip --disable-pip-version-check install --quiet

.PHONY: repro test quick lint ui clean

repro: .venv/installed
	@$(RUN) simple-llama check
	@$(RUN) dvc repro
	@$(RUN) simple-llama summary

test: lint
	@$(RUN) python -m pytest

quick: .venv/installed-dev
	@$(RUN) python -m pytest -m "not slow"

lint: .venv/installed-dev
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

ui: .venv/installed
	@echo "opening on http://127.0.0.1:$(PORT)/#/experiments/1?workflowType=machine_learning (Ctrl-C ends it)"
	@$(RUN) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port $(PORT)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found, wanted Python 3.11 or newer: make PYTHON=python3"; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: wanted Python 3.11 or newer")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing requirements.lock (a few minutes the first time)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	@echo "installing requirements-dev.lock"
	@$(PIP) -r requirements-dev.lock
	@touch $@
