# Each target is listed by `make help` from the comment behind it.
.DEFAULT_GOAL := help
.PHONY: help setup train test test-core report ladder ablation long bench figures faults fuzz lint format clean

CONFIG ?= gpt_cpu
ARGS ?=
RUNS ?=
NANOGPT ?=
# The first Python that this package runs on.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock
READY := .venv/.ready

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with everything, pinned by requirements.lock (the others do it too)

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[dev]'
	@# The schema of W&B's sweeps, for a test; what it depends on would want an old NumPy.
	$(PIP_INSTALL) --no-deps sweeps
	@touch $@

train: $(READY)  ## Train CONFIG (gpt_cpu) and print a sample; more options in ARGS
	$(BIN)/lit-gpt-scratch fit --config configs/$(CONFIG).yaml --data.fallback sample $(ARGS)

test: $(READY)  ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-core: $(READY)  ## Run the tests that take no long process, in about two minutes
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

ladder: $(READY)  ## Train every rung; table and samples go to runs/ladder.md (ARGS=--readme: README.md too)
	$(BIN)/python tests/benchmarks/ladder.py $(ARGS)

ablation: $(READY)  ## Take the default apart, piece by piece; runs/ablation.md
	$(BIN)/python tests/benchmarks/ablation.py $(ARGS)

long: $(READY)  ## Train gpt_cpu_long for three seeds (half an hour and more); runs/long.md
	$(BIN)/python tests/benchmarks/long.py $(ARGS)

bench: $(READY)  ## Measure speed, beside a checkout of nanoGPT in NANOGPT; runs/bench.md
	$(BIN)/python tests/benchmarks/bench.py $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(ARGS)

report: $(READY)  ## Make report.html of the newest run of each name; RUNS names others
	$(BIN)/python -m lit_gpt_scratch.report $(RUNS) $(ARGS)

faults: $(READY)  ## Break runs in a hundred ways, and see that each ends right (ARGS=--list: in which)
	$(BIN)/python tests/faults/campaign.py $(ARGS)

fuzz: $(READY)  ## Read thousands of spoiled checkpoints, caches, prompts and corpora, under watch
	$(BIN)/python tests/faults/fuzz.py $(ARGS)

figures: $(READY)  ## Draw the README's pictures, from runs of make ladder
	$(BIN)/python tests/benchmarks/figures.py $(ARGS)

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and caches; runs/ is kept
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
