# make install: .venv.  make repro: set up and run the pipeline.  make test: lint, types, all tests.
# The plain commands behind each target stand in the README.
SHELL := /bin/bash
# the first that runs: an alias of a version manager may lead nowhere
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := $(CURDIR)/.venv
PORT ?= 5000
RUN := PATH="$(VENV)/bin:$$PATH" DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
PIP := "$(VENV)/bin/python" -m pip --disable-pip-version-check install --quiet

.PHONY: install repro test quick lint bench ui exp gc clean

install: .venv/installed

repro: .venv/installed
	@$(RUN) simple-llama check
	@$(RUN) dvc repro
	@$(RUN) simple-llama summary

test: lint
	@$(RUN) python -m pytest -n 2 --dist loadfile

quick: .venv/installed-dev
	@$(RUN) python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/installed-dev
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

bench: .venv/installed-dev
	@$(PIP) --editable '.[bench]'
	@$(RUN) python -m benchmarks

ui: .venv/installed
	@echo "opening on http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART (Ctrl-C ends it)"
	@$(RUN) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port $(PORT)

exp: .venv/installed
	@$(RUN) dvc exp show --only-changed --no-pager --sort-by reports/eval.json:val_loss --drop '^(Created|State|Executor|steps|train_loss|best_|val_perp|val_tok|base_|by_category|data/|models/|base|stages/|simple_llama/|.*train[.]json|reports/.*json$$|reports/curves|.*[.]lock)'

gc: .venv/installed
	@tasks=$$($(RUN) dvc queue status) || exit 1; \
	if grep -qE ' (Running|Queued) *$$' <<< "$$tasks"; then \
	echo "error: experiments run or wait in the queue, and gc would delete what they need: wanted an empty queue (dvc queue status; dvc queue remove --queued)"; exit 1; fi
	@$(RUN) dvc gc --workspace --all-branches --all-tags --all-experiments --force
	@if [ -f mlflow.db ]; then $(RUN) mlflow gc --tracking-uri sqlite:///mlflow.db --backend-store-uri sqlite:///mlflow.db; fi
	@if [ -d .resume ]; then find .resume/ -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +; fi

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "error: no Python from 3.11 on found as python3.11, python3.12, python3.13 or python3: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: wanted Python 3.11 or newer")' || { echo "error: $(PYTHON): wanted Python 3.11 or newer"; exit 1; }
	@echo "making .venv with $(PYTHON)"
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
