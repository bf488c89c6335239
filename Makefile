# `make run` and `make test` set up everything they need in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/deploy/local
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Threads that wait by spinning are slow where other processes want the cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup lock audit run test test-slow test-computing test-daemons test-deploy test-all test-browser fuzz ui ui-ray bench lint clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# What is installed, and that each file is the one that the project was tested with: requirements.lock.
INSTALL := sh deploy/install.sh $(BIN)/python

# pip keeps a PyTorch for CPUs that is there already; where the index has no other, this says so instead of going on.
HAS_CUDA := $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None and torch.version.hip is None)'
define CUDA_TORCH
$(HAS_CUDA) || { echo "The PyTorch in .venv is built for CPUs only; replacing it."; \
  PIP_FORCE_REINSTALL=1 $(INSTALL) torch; \
  $(HAS_CUDA) || { echo "error: The package index has PyTorch for CPUs only, so that EXTRAS=cuda would be of no use." \
    "Unset PIP_FIND_LINKS, PIP_INDEX_URL and PIP_EXTRA_INDEX_URL (or name https://download.pytorch.org/whl/cu130, with" \
    "TRUST=torch), then run make setup EXTRAS=$(EXTRAS) again." >&2; exit 1; }; }
endef

comma := ,
setup: .venv/.runtime ## install the package and its locked dependencies into .venv: make setup EXTRAS=s3,cuda
	@$(if $(findstring cuda,$(EXTRAS)),$(CUDA_TORCH))
	@test -z "$(EXTRAS)" || $(INSTALL) $(subst $(comma), ,$(EXTRAS))

lock: .venv/.runtime ## make requirements.lock anew from pyproject.toml: make lock, make lock UPGRADE='ray torch', UPGRADE=all
	@$(INSTALL) lock && $(BIN)/python deploy/lock.py $(UPGRADE)

# pip-audit passes over what it is told nothing of; so one record that must be there is asked for first, and --strict.
RECORD := https://pypi.org/pypi/pip/24.0/json
audit: .venv/.runtime ## look for known vulnerabilities of the pinned packages (asks pypi.org; CI does not)
	@$(BIN)/python -c 'import json, urllib.request as u; json.load(u.urlopen("$(RECORD)", timeout=20))["vulnerabilities"]' \
	  2>/dev/null || { echo "error: Nothing was audited: the records of known vulnerabilities ($(RECORD)) cannot be had" \
	  "from here. Run make audit on a machine that reaches pypi.org." >&2; exit 1; }
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && sh deploy/install.sh .venv/audit/bin/python audit; }
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

run: .venv/.runtime ## materialize the whole graph with its checks, then print the gate
	@$(BIN)/po-assets run

# Tests of one module share costly fixtures; so each module stays with one worker.
test: .venv/.dev ## run the tests of every stage with real components (six to twelve minutes on two cores)
	@$(BIN)/pytest -n auto --maxprocesses 8 --dist loadscope -m 'not slow'

# Three groups side by side: those that compute (whole runs, students served), and two that wait for others in the main.
DEPLOY := po_assets_tests/deploy
DAEMONS := $(addprefix po_assets_tests/,automation browser dag)
SLOW := $(BIN)/pytest -m slow --durations 12
test-slow: .venv/.dev ## run the other tests: whole runs, Ray, Kubernetes, servers (some twenty-five minutes)
	@echo "Three groups of tests side by side, one by one in each; what they say is shown when a group has ended."
	@$(MAKE) --no-print-directory --jobs 3 $(if $(filter output-sync,$(.FEATURES)),--output-sync) \
	  test-computing test-daemons test-deploy

test-computing: .venv/.dev
	@$(SLOW) po_assets_tests $(addprefix --ignore=,$(DAEMONS) $(DEPLOY))

test-daemons: .venv/.dev
	@$(SLOW) $(DAEMONS)

test-deploy: .venv/.dev
	@$(SLOW) $(DEPLOY)

test-all: test test-slow ## run all of them

test-browser: .venv/.dev ## run the tests that look at the UI in a browser (needs chromium: apt-get install chromium)
	@PO_REQUIRE_BROWSER=1 $(BIN)/pytest po_assets_tests/browser

SECONDS ?= 60
fuzz: .venv/.fuzz ## look for landed input that breaks an invariant: make fuzz SECONDS=60
	@$(BIN)/python -m benchmarks.fuzz --seconds $(SECONDS) --corpus .fuzz/corpus

# Exported by make, not written into a command: the path may have spaces and quotes.
ui-ray: export DAGSTER_HOME = $(CURDIR)/deploy/ray

ui: .venv/.runtime ## open the Dagster UI on http://127.0.0.1:3000, on the same instance
	@$(BIN)/po-assets ui

ui-ray: .venv/.ray ## the same on Ray: each step a Ray job, those that compute with the model on a GPU of their own
	@$(BIN)/po-assets ui-ray

bench: .venv/.bench ## measure every speed figure that the README quotes
	@$(BIN)/python -m benchmarks

lint: .venv/.dev ## formatting, lint and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean: ## remove what the graph made, and the instance's history
	rm -rf artifacts/distillation artifacts/models artifacts/curation artifacts/teacher_llm
	git clean -fdX artifacts/evaluation deploy/local deploy/ray

.venv/.runtime: pyproject.toml requirements.lock
	@echo "Setting up .venv (two to four minutes, once) ..."
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo "error: Python 3.11 to 3.14 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv .venv; }
	@$(INSTALL) run
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.fuzz .venv/.bench: .venv/.dev
.venv/.dev .venv/.ray .venv/.fuzz .venv/.bench: .venv/.runtime
	@$(INSTALL) $(@:.venv/.%=%)
	@touch $@
