# `make serve` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TOOLS  := $(VENV)/.tools

.DEFAULT_GOAL := help
.PHONY: help install tools serve test test-all docs-check lint bench gpu-check asan format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## make .venv with Hagane and what serving and training need

tools: $(TOOLS)  ## add what tests, checks and benchmarks need

KERNELS := setup.py $(wildcard app/hagane/kernels/cpu/*)

$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# The extra's requirements alone: installing Hagane again would build the kernels again.
$(TOOLS): $(STAMP)
	$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
print(*extras["dev"], sep="\n")' > $(VENV)/tools.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(VENV)/tools.txt
	@touch $@

serve: install  ## serve on http://127.0.0.1:8000 the built-in model, or MODEL=...
	$(BIN)/hagane serve $(if $(MODEL),--model $(MODEL)) $(ARGS)

test: tools  ## run the test suite with a coverage report
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

test-all: tools  ## run the slow tests, too: they build a wheel and install it
	$(BIN)/python -m pytest -m "" $(ARGS)

docs-check: tools  ## run every command in README and docs that can be run
	$(BIN)/python -m pytest -m "" tests/docs $(ARGS)

lint: tools  ## ruff (lint and format) and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## measure the built-in model on this machine
	$(BIN)/hagane bench hagane-mini $(ARGS)

gpu-check:  ## test and measure everything on a GPU, in eight minutes; installs nothing
	PYTHONPATH=app $(PYTHON) benchmarks/gpu_check.py $(ARGS)

asan: tools  ## test the native kernels under GCC's AddressSanitizer, then build them again without
	CFLAGS=-fsanitize=address LDFLAGS=-fsanitize=address \
		$(BIN)/python setup.py --quiet build_ext --inplace --force
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python -m pytest tests/kernels tests/engine/step/test_graphs.py --ignore tests/kernels/cuda --timeout 3600; \
		status=$$?; $(BIN)/python setup.py --quiet build_ext --inplace --force; exit $$status

format: tools  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
