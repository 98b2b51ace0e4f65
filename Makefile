# `make help` prints the comment behind each target.
.DEFAULT_GOAL := help
.PHONY: help setup train test test-core report playground lab ladder ablation long bench versions gpu figures faults fuzz lint format clean

CONFIG ?= gpt_cpu
ARGS ?=
RUNS ?=
NANOGPT ?=
OLD ?=
# The first Python of a supported version.
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
SUPPORTED := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
PYTHON ?= $(shell for p in $(PYTHONS); do $$p $(SUPPORTED) && echo $$p && break; done)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock
# Shows pip's newest line in place, as it prints hundreds; in a log file, none. Fails if pip has failed.
SHOW := while read -r line; do [ "$$line" != failed ] || exit 1; \
	[ ! -t 1 ] || printf '\r\033[K%.78s' "$$line"; done; [ ! -t 1 ] || printf '\r\033[K'
READY := .venv/.ready

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## Create .venv with all packages (the other targets do this too)

$(READY): pyproject.toml requirements.lock
	@$(or $(PYTHON),false) $(SUPPORTED) || { \
		echo "Python 3.11, 3.12, 3.13 or 3.14 is needed. Found here:"; \
		for p in $(sort $(PYTHON) $(PYTHONS)); do \
			version=$$($$p --version 2>&1) && echo "  $$p: $$version" || echo "  $$p: none"; done; \
		echo "Install one, for example with uv (https://docs.astral.sh/uv): uv python install 3.13"; \
		echo "Then name it: make setup PYTHON=path (uv python find 3.13 prints the path)."; exit 1; } >&2
	$(PYTHON) -m venv .venv
	@echo "Installing $$(grep -c == requirements.lock) packages into .venv. On Linux, PyTorch brings CUDA:"
	@echo "6 GB, about 10 minutes. (For a smaller PyTorch, see README.md.)"
	@{ $(PIP_INSTALL) --editable '.[dev]' || echo failed; } | { $(SHOW); }
	@# A test needs the schema of W&B's sweeps; its dependencies need an old NumPy, so skip them.
	@{ $(PIP_INSTALL) --no-deps sweeps==0.3.0 || echo failed; } | { $(SHOW); }
	@echo "The packages are installed."
	@touch $@

train: $(READY)  ## Train CONFIG (default: gpt_cpu) and print a sample; ARGS adds flags
	$(BIN)/lit-gpt-scratch fit --config configs/$(CONFIG).yaml --data.fallback sample $(ARGS)

test: $(READY)  ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-core: $(READY)  ## Run the tests that start no long process, about two minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

ladder: $(READY)  ## Train the rungs and write runs/ladder.md (ARGS=--readme: the READMEs too)
	$(BIN)/python tests/benchmarks/ladder.py $(ARGS)

ablation: $(READY)  ## Change one part of gpt_cpu at a time and write runs/ablation.md
	$(BIN)/python tests/benchmarks/ablation.py $(ARGS)

long: $(READY)  ## Train gpt_cpu_long and its students for three seeds and write runs/long.md
	$(BIN)/python tests/benchmarks/long.py $(ARGS)

bench: $(READY)  ## Measure speed, also of a checkout NANOGPT=path of nanoGPT; write runs/bench.md
	$(BIN)/python tests/benchmarks/bench.py $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(ARGS)

versions: $(READY)  ## Compare training with an older version, OLD=path of a checkout; write runs/versions.md
	$(BIN)/python tests/benchmarks/versions.py --old $(OLD) $(ARGS)

gpu: $(READY)  ## Measure what one GPU can tell and write runs/gpu/ (ARGS=--smoke: try it on a CPU)
	$(BIN)/python tests/benchmarks/gpu.py $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(ARGS)

report: $(READY)  ## Write report.html of the newest run of each name, or of RUNS
	$(BIN)/lit-gpt-scratch report $(RUNS) $(ARGS)

playground: $(READY)  ## Write playground.html, in which the newest run of each name, or RUNS, can be tried
	$(BIN)/lit-gpt-scratch playground $(RUNS) $(ARGS)

lab: $(READY)  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks $(ARGS)

faults: $(READY)  ## Break training runs and check how each ends (ARGS=--list: print the faults)
	$(BIN)/python tests/faults/campaign.py $(ARGS)

fuzz: $(READY)  ## Read thousands of damaged files and check that they do no harm
	$(BIN)/python tests/faults/fuzz.py $(ARGS)

figures: $(READY)  ## Draw the pictures of the README from the runs of make ladder
	$(BIN)/python tests/benchmarks/figures.py $(ARGS)

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and caches; keep runs/
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
