# The verbs of the project. `make repro` and `make test` need git, make and Python 3.11 or 3.12, nothing else.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
HOST ?= 127.0.0.1
PORT ?= 5000

# One thread per process: trials run side by side, and two threads fighting for a core are slower than one.
export OMP_NUM_THREADS ?= 1
# Byte code makes every process start in half the time; some images switch it off.
unexport PYTHONDONTWRITEBYTECODE
# The environment comes first, so that DVC's stages find its `python`.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro readme explain test test-slow check format bench chaos ui lock clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

repro: $(VENV)/ready ## raw data to comparison tables (about half an hour on two cores)
	@git rev-parse --git-dir >/dev/null 2>&1 || $(BIN)/dvc config --quiet --local core.no_scm true
	@$(BIN)/python -m stages.preflight
	@$(BIN)/dvc repro
	@$(BIN)/python -m stages.report --where

readme: $(VENV)/ready ## show the last report's tables and pictures in README.md
	@$(BIN)/python -m stages.report --readme

explain: $(VENV)/ready ## where a cell comes from: make explain CELL=digits/dart-36/top1_mean
	@$(BIN)/python -m pipeline.report.explain $(CELL)

test: $(VENV)/ready ## the tests, but for the slow ones (under ten minutes on two cores)
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/ready ## the slow ones: compilers, clusters, deaths (CI runs both)
	@$(PYTEST) -m slow $(PYTEST_ARGS)

check: $(VENV)/ready ## lint, format and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/ready ## mend what lint and format can mend
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/ready ## our parts against their peers, as ratios in one run
	@$(BIN)/python -m benchmarks

chaos: $(VENV)/ready ## kills and faults at every turn on a tiny suite of its own, and what was lost (CHAOS_ARGS=--short)
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

ui: $(VENV)/ready ## MLflow on the recorded runs, at http://127.0.0.1:5000; for others: HOST=... ALLOW=its.name
	@$(BIN)/python -m pipeline.tracking ui --host $(HOST) --port $(PORT) $(addprefix --allow ,$(ALLOW))

lock: $(VENV)/uv ## resolve requirements.lock anew
	@$(VENV)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements.lock

clean: ## remove what the stages made (the DVC cache and the environment stay)
	rm -rf data runs results report mlflow.db mlartifacts

# uv: the one on PATH, or one of our own beside the environment.
$(VENV)/uv:
	@test -n "$(PYTHON)" || { echo "python = not found: needs 3.11 or 3.12; install one of them"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"python = {v[0]}.{v[1]}: needs 3.11 or 3.12; run make PYTHON=/path/to/python3.11")'
	@mkdir -p $(VENV)
	@if command -v uv >/dev/null; then ln -sf "$$(command -v uv)" $@; else \
	  echo "installing uv"; $(PYTHON) -m venv $(VENV).boot && $(VENV).boot/bin/pip install --quiet --disable-pip-version-check uv \
	  && ln -sf ../$(VENV).boot/bin/uv $@; fi

$(VENV)/ready: requirements.lock pyproject.toml | $(VENV)/uv
	@echo "setting up $(VENV) (about two minutes the first time)"
	@test -x $(BIN)/python || $(VENV)/uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
	@$(VENV)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	@$(VENV)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(BIN)/python -c "import torch._dynamo, torchvision, timm, ray.train.torch, ray.tune, mlflow.tracking, dvc.cli, webdataset, pandas, sklearn, matplotlib.pyplot"
	@touch $@
