# A fresh clone to a working result: `make test`, `make demo`. Everything lives in .venv.
#
# PYTHON  interpreter the environment is made from (3.10 or newer)
# TORCH   requirement installed before everything else. On Linux the usual wheels bring gigabytes of CUDA packages;
#         where pip knows a place with CPU wheels (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS), the pin takes those
# EXTRAS  extras installed into the environment
# AOT     options of make aot, such as --quick or --arch 90
# TRACENET_BUILD_NATIVE=1 fails when the C++ extension does not build, =0 skips it; otherwise it is optional.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
EXTRAS ?= dev,train,eval,viewer,docs

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CPP    := $(shell find csrc -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))

.DEFAULT_GOAL := help
.PHONY: help install web web-check test sanitize aot demo docs lint format env clean

help:
	@echo "make test     install into $(VENV) and run the tests"
	@echo "make sanitize run the C++ tests under AddressSanitizer, UBSan and ThreadSanitizer"
	@echo "make aot      compile every GPU kernel ahead of time and check its machine code; needs no GPU"
	@echo "make web      build the viewer's page from web/; needs Node 20, users do not"
	@echo "make demo     install into $(VENV) and segment a clicked object in a bundled photo"
	@echo "make docs     build the documentation site into site/; open site/index.html"
	@echo "make lint     ruff, mypy, clang-format, without changing anything"
	@echo "make format   let ruff and clang-format rewrite the sources"
	@echo "make env      what is installed, which backends work and why the others do not"
	@echo "make clean    remove everything that is built or installed here"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment; install its venv module or pass PYTHON=..." >&2; exit 1; }

$(STAMP): $(BIN)/python pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install --editable ".[$(EXTRAS)]"
	$(BIN)/python -m tracenet_kernels.env_report
	@touch $@

install: $(STAMP)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# The registry's address stays out of the lock file, so any registry that npm knows will do.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --ignore-scripts

web: web/node_modules/.package-lock.json
	cd web && npm run --silent check && npm run --silent build

web-check: web/node_modules/.package-lock.json
	cd web && npm run --silent check && npm run --silent test && npm run --silent build -- --check

sanitize:
	PATH="$(CURDIR)/$(BIN):$$PATH" bash .ci/sanitize

aot: install
	TRITON_INTERPRET=0 $(BIN)/python -m tracenet_kernels.triton.aot $(AOT)

demo: install
	$(BIN)/python -m tracenet.demo

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

env: install
	$(BIN)/python -m tracenet_kernels.env_report

clean:
	rm -rf $(VENV) web/node_modules build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tracenet_kernels/_C*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
