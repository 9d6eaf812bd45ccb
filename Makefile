# Commands for a fresh machine with Python 3.11, 3.12 or 3.13:
#   make demo    a real FLAIR, its lesions found and scored against what raters drew
#   make test    lint, types, import layers, documentation and every test
#   make audit   known vulnerabilities of the installed packages, asked of PyPI
#   make wheel   dist/bagau_bids-<version>-py3-none-any.whl, installed by pip on any machine
#
# `make test-images` builds the container images and runs them, where podman and buildah are
# installed. Continuous integration runs both.
#
# Without a CUDA device, save gigabytes: TORCH_INDEX=<CPU index address from pytorch.org>.

PYTHON ?= $(shell for it in python3.11 python3.12 python3.13; do command -v $$it && break; done)
VENV ?= .venv
TORCH_INDEX ?=
PIP_INSTALL = $(BIN)/python -m pip install -c constraints.txt
BIN = $(VENV)/bin

DEMO ?= demo
PYTEST_OPTIONS ?= --durations=15

.DELETE_ON_ERROR:
.PHONY: help demo test test-images lint docs install wheel benchmark audit clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.torch: constraints.txt
	@echo "Installing into $(VENV): some minutes, 3 GB, and more with the CUDA libraries of torch"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable '.[test,lint,docs]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed
	@echo "Next: $(abspath $(BIN))/bagau segment SCAN.nii.gz OUT"

# A file that pip installs without this repository, weights inside.
wheel:
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -sh dist/*.whl

demo: $(VENV)/.installed
	$(BIN)/bagau example $(DEMO)
	$(BIN)/bagau segment $(DEMO)/example_FLAIR.nii.gz $(DEMO)/wmh --mask $(DEMO)/example_mask.nii.gz \
	    --template ICBM152NLin2009aSym --offline

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run tools/*.sh

# Times of scans, as in make benchmark SCANS="/data/ds:01 /data/ds:02"; see docs/performance.md.
benchmark: $(VENV)/.installed-dev
	$(if $(SCANS),,$(error SCANS names no scan; expected some, each as DATASET:LABEL))
	$(BIN)/python benchmarks/performance.py $(SCANS) --scratch build/benchmark \
	    --store build/benchmark.json $(BENCHMARK_OPTIONS)

# Known vulnerabilities of what is installed, asked of PyPI; one that cannot be looked up fails, too.
audit: $(VENV)/.installed
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > build/audit/packages.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip \
	    --requirement build/audit/packages.txt

# Links, anchors and pages outside the navigation are checked; a warning is an error.
docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet
	@echo "Documentation: $(CURDIR)/build/site/index.html"

test: lint docs
	$(BIN)/pytest $(PYTEST_OPTIONS)

test-images: $(VENV)/.installed-dev
	$(BIN)/pytest $(PYTEST_OPTIONS) -m container

clean:
	rm -rf $(VENV) $(DEMO) build/site
