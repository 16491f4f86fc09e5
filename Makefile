# Each target makes its own environment: `make demo` and `make test` are all that a checkout needs.
#   make demo   train a CNN on FashionMNIST with tuned Adam, tuned Muon and ngopt, and draw the curves
#   make test   run the tests
#   make lint   check style and types
#   make docs   build the documentation and serve it; runs notebooks that changed (make docs NOTEBOOKS=skip: none)
# Another interpreter: make test PYTHON=python3.12
# The tests run in two processes of one thread each; in more: make test PROCESSES=4

PYTHON ?= python3
PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python -m meta_train.paper.demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	NOTEBOOKS=$(NOTEBOOKS) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[train,docs]'
	touch $@

$(VENV)/.installed-demo: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[train]'
	touch $@

# What the tests need holds what the demo needs.
$(VENV)/.installed-test: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install -e '.[train,graph,dev]'
	touch $(VENV)/.installed-demo $@

# pip is the last thing that venv installs, so where it is the environment is whole.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "ngopt needs Python 3.11 or newer; '$(PYTHON)' was not found." \
	    "Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ngopt needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
