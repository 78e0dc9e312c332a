# From clone to picture: `make demo`. Run `make` alone for the list.
#
#   PYTHON=python3.12   the interpreter that builds the environment
#   VENV=.venv          where the environment lives
#   ARGS='-k pooling'   passed on to pytest, or to the demo; for the tests,
#                       -m '' runs the slow ones too, -n 0 one at a time

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := kernels/fma_kernels/backends/native
# What is installed depends on these files only: the install is editable, and
# compiles the C kernels.
REQUIREMENTS := setup.py setup.cfg $(wildcard requirements/*) \
	$(wildcard $(NATIVE)/build.py $(NATIVE)/*.[ch])
SOURCES := $(wildcard fma_vision kernels configs tools tests demo \
	benchmarks requirements setup.py)

.DEFAULT_GOAL := help
.PHONY: help demo test install lint format clean check-python

help:
	@echo 'make demo     segment a photograph with the shipped weights'
	@echo 'make test     run the tests; .ci/run runs the slow ones too'
	@echo 'make install  build $(VENV) and install everything into it'
	@echo 'make lint     flake8, isort and yapf, changing nothing'
	@echo 'make format   isort and yapf, in place'
	@echo 'make clean    remove $(VENV), build products and caches'
	@echo '              (data/, work_dirs/ and outputs/ are kept)'
	@echo
	@echo 'Options: PYTHON=python3.12  VENV=.venv  ARGS="..."'

demo: $(STAMP)
	$(BIN)/python demo/image_demo.py $(ARGS)

# A process for each processor, which takes over tests from one still busy.
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal \
	  -m 'not slow' $(ARGS)

install: $(STAMP)
	@echo 'Ready: activate with `. $(BIN)/activate`.'

lint: $(STAMP)
	$(BIN)/python -m flake8 $(SOURCES)
	$(BIN)/python -m isort --check-only --diff $(SOURCES)
	$(BIN)/python -m yapf --diff --recursive --parallel $(SOURCES)

format: $(STAMP)
	$(BIN)/python -m isort $(SOURCES)
	$(BIN)/python -m yapf --in-place --recursive --parallel $(SOURCES)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis
	rm -f $(NATIVE)/_fma_native.*
	find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +

# An order-only check: the stamp alone decides about re-installing. An
# environment that works is kept, whatever PYTHON is by now.
$(STAMP): $(REQUIREMENTS) | check-python
	@python='$(BIN)/python'; "$$python" -c '' 2> /dev/null || \
	  python='$(PYTHON)'; "$$python" requirements/install.py $(VENV)
	@touch $@

# Written for any Python, so that an old one gets the sentence, not a traceback.
check-python:
	@test -e $(STAMP) || command -v '$(PYTHON)' > /dev/null || { \
	  echo 'No interpreter "$(PYTHON)": install CPython 3.11, 3.12 or 3.13,' \
	    'or name one, e.g. `make install PYTHON=python3.11`.' >&2; exit 1; }
	@test -e $(STAMP) || $(PYTHON) -c "import platform, sys; \
	  name, ver = platform.python_implementation(), sys.version_info[:2]; \
	  ok = name == 'CPython' and (3, 11) <= ver <= (3, 13); \
	  sys.exit(0 if ok else 'PYTHON=$(PYTHON) is %s %d.%d; the pinned' \
	  ' versions need CPython 3.11, 3.12 or 3.13: name one, e.g. make' \
	  ' install PYTHON=python3.11' % ((name,) + ver))"
