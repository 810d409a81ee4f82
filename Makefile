# `make` lists the targets. Every path is relative, so the folder's own path may hold spaces.

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
WORKERS ?= 2

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c constraints.txt
# The stamp's name depends on where the folder is: a moved folder needs its editable install renewed.
STAMP := .venv/.ready-$(shell pwd | cksum | cut -d ' ' -f 1)

# keeps glibc from giving every freed tensor back to the system, only to fault its pages in again
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all gpu-test gpu-bench check format docs train-demo card bench study \
	study-timing clean

# Nothing below may reach for the network once the environment is there.
demo test test-all gpu-test gpu-bench check train-demo card bench study study-timing: export HF_HUB_OFFLINE = 1

help: ## list the targets (the default)
	@echo 'usage: make TARGET [PYTHON=python3.12] [TORCH_INDEX="..."]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON         the Python that .venv is made with (3.11 or newer; default: python3)'
	@echo '  TORCH_INDEX    extra pip options for PyTorch. On Linux PyPI serves the CUDA build (gigabytes);'
	@echo '                 for the CPU build (about 200 MB) say'
	@echo '                 make venv TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"'
	@echo '  WORKERS      processes that "make test" shares the tests among (default: 2)'
	@echo '  PYTEST_ARGS    more arguments for pytest, such as PYTEST_ARGS="-k eb_sampler -x"'

venv: $(STAMP) ## create .venv and install unmask with its tools (nothing to do: does nothing)
	@echo '==> .venv is ready'

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is missing or older than 3.11, which the versions in constraints.txt need;" \
		"choose another with PYTHON=..., or use 3.10 with your own 'pip install -e .'" >&2; exit 1; }
	@echo '==> 1/3 creating the virtual environment .venv'
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@echo '==> 2/3 installing PyTorch (the large download: minutes the first time)'
	@$(PIP) $(TORCH_INDEX) torch
	@echo '==> 3/3 installing unmask, its dependencies and the development tools'
	@$(PIP) $(TORCH_INDEX) -e '.[dev]'
	@rm -f .venv/.ready-* && touch $(STAMP)

demo: $(STAMP) ## set up, then watch the bundled model fill in masks in this terminal (CPU, no network)
	@echo '==> decoding with the bundled model: .venv/bin/python -m unmask.cli.main demo'
	@$(PY) -m unmask.cli.main demo

test: $(STAMP) ## run the fast tests (CPU, no network)
	@echo '==> running the fast tests in $(WORKERS) processes of one thread: pytest -m "not slow"'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-all: $(STAMP) ## run every test, the slow ones too; installs Ray (500 MB) and schemathesis first
	@$(PY) -c 'import ray, schemathesis' 2>/dev/null || { \
		echo '==> installing Ray Serve and schemathesis, which some slow tests need'; \
		$(PIP) $(TORCH_INDEX) -e '.[fuzz,ray]'; }
	@echo '==> 1/2 running the fast tests and further cases of them in $(WORKERS) processes of one thread'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow or wide" -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
	@echo '==> 2/2 running the other slow tests one after the other: they measure time and memory'
	@$(PY) -m pytest -m "slow and not wide" $(PYTEST_ARGS)

gpu-test: $(STAMP) ## on a CUDA machine: compare its results with the CPU's (skips without one)
	@echo '==> running tests/test_cuda.py in $(WORKERS) processes'
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_cuda.py -W ignore -rs -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

gpu-bench: $(STAMP) ## on a CUDA machine: time of a step beside its floor; CASES="..." chooses
	@$(PY) benchmarks/gpu_speed.py $(CASES)

check: $(STAMP) ## lint, formatting and types; changes nothing
	@echo '==> ruff check'
	@$(PY) -m ruff check .
	@echo '==> ruff format --check'
	@$(PY) -m ruff format --check .
	@echo '==> mypy'
	@$(PY) -m mypy

format: $(STAMP) ## rewrite the sources in the house format
	@echo '==> sorting imports and mending what ruff can mend'
	@$(PY) -m ruff check --fix-only .
	@echo '==> formatting'
	@$(PY) -m ruff format .

docs: $(STAMP) ## build the documentation site into site/ (installs MkDocs first); a broken link fails
	@$(PY) -c 'import material' 2>/dev/null || { \
		echo '==> installing MkDocs'; $(PIP) $(TORCH_INDEX) -e '.[docs]'; }
	@echo '==> building site/: mkdocs build --strict'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo '==> site/index.html is ready'

train-demo: $(STAMP) ## train the bundled model again from scratch (CPU, long)
	@echo '==> training the demo model: unmask train recipe=demo compile=true'
	@$(MALLOC) $(PY) -m unmask.cli.main train recipe=demo compile=true

card: $(STAMP) ## measure the bundled model again and rewrite the table of its model card
	@echo '==> evaluating the bundled model: python -m unmask.demo.evaluate'
	@$(PY) -m unmask.demo.evaluate --write

bench: $(STAMP) ## measure ratios, products, host cost, growth, planning, start, serving, memory, with goals
	@failed=0; for each in ratios.py 'packed_weights.py products share forward int8' host_cost.py \
		'host_cost.py --growth' plan_cost.py start_up.py serve_share.py constraint_cost.py new_lengths.py memory_soak.py; do \
		echo "==> benchmarks/$$each"; OMP_NUM_THREADS=1 $(PY) benchmarks/$$each || failed=1; \
	done; exit $$failed

study: $(STAMP) ## measure the study of CadLLM again (half an hour), rewrite its tables and pictures
	@echo '==> studies/cadllm/run.py --again (interrupted? go on without --again)'
	@$(PY) studies/cadllm/run.py --again

study-timing: $(STAMP) ## the study's seconds, for a machine with nothing else to do
	@echo '==> studies/cadllm/run.py --again timing'
	@$(PY) studies/cadllm/run.py --again timing

clean: ## remove caches and built packages; keeps .venv and runs/
	@echo '==> removing caches, build/ and dist/ (.venv and runs/ stay)'
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
