# The commands of a clone. Every target installs what it needs; installing again takes no time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   := $(VENV)/installed-to-run
STAMP  := $(VENV)/installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
GET    := $(PIP) install --no-compile --constraint constraints.txt
# Modules are compiled below, in parallel: pip compiles one after the other, and processes that start together all compile
# what they import.
UNUSED := transformers/models/|ray/rllib|ray/tune|/tests?/|sympy|torch/_inductor|torch/testing|onnx/backend
TORCH  := $(shell sed -n 's/^torch==//p' constraints.txt)
ARGS   ?=
# A file of tests stays in one process: its fixtures are made once.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# With it, every process of a run would compile again what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup distill check quick test lint format wheel constraints clean

help: ## list the targets
	@echo "make distill runs the quickstart from a fresh clone. All targets:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the virtual environment .venv with all dependencies

distill: $(RUNS) ## run the quickstart recipe; make distill ARGS="RECIPE --run DIR" runs another
	$(BIN)/python jobs/distill.py $(ARGS)

check: $(STAMP) ## run the linters and the tests without Ray, in two or three minutes
	@$(MAKE) --no-print-directory --jobs=2 lint quick

quick: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(SHARED) $(ARGS)

test: $(STAMP) ## run all tests; make test ARGS="-k losses" runs some
	$(BIN)/python -m pytest $(SHARED) $(ARGS)

lint: $(STAMP) ## check formatting, style, types and import floors without changing a file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format the code and apply the automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# PYTHONPATH precedes the editable installation, so that the command runs from the wheel's files alone.
wheel: $(STAMP) ## build the wheel in dist/, and run its command without the clone
	rm -rf dist
	$(PIP) wheel . --no-deps --wheel-dir dist
	$(PIP) install --no-deps --target dist/installed dist/*.whl
	cd dist && PYTHONPATH=$$PWD/installed installed/bin/jasper-ray distill quickstart --dry-run

# torch first and alone: pip chooses the build it is configured for, CPU or CUDA, and the other packages accept it.
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "$$($(PYTHON) --version 2>&1) found, Python 3.11 to 3.14 expected: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up $(VENV): torch $(TORCH), then the other packages; a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(GET) torch==$(TORCH)
	@$(GET) --editable ".[all]"
	@$(BIN)/python -m compileall -q -j 0 -x '$(UNUSED)' $(VENV)/lib >/dev/null || true
	@touch $@

$(STAMP): $(RUNS)
	@echo "Adding the packages of tests, linters and benchmarks; a minute."
	@$(GET) --editable ".[dev]"
	@touch $@

# CUDA libraries are dropped, since torch names the exact ones it needs, and so are markers of other systems.
constraints: $(STAMP) ## resolve the newest dependencies into constraints.txt, for every supported Python
	$(PIP) install uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
		--no-header --no-annotate --output-file $(VENV)/resolved
	{ grep '^#' constraints.txt; sed -E -e '/^(nvidia-|cuda-|triton==)|== .(win32|emscripten).$$/d' \
		-e 's/ (;|and) (implementation_name|platform_[a-z_]+|sys_platform) .*//' \
		-e 's/^(torch==[0-9.]+).*/\1/' $(VENV)/resolved | uniq; } > $(VENV)/constraints
	mv $(VENV)/constraints constraints.txt

clean: ## remove the environment and caches, but not runs/
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
