# make demo: a virtual environment, the package and its main job. make test: every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
TORCH ?= torch==2.13.0
# CUDA code is built only where a GPU answers, so that a laptop waits for nothing it cannot run.
export PYLUM_CUDA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo ON || echo OFF)

SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test build format lint
build: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install -q "setuptools>=77" "pybind11>=2.13" "cmake>=3.24" ninja
	$(BIN)/pip install -q --no-build-isolation -e ".[plot]"
	ln -sf build/cpython-*/compile_commands.json .
	touch $@

$(VENV)/.test: $(VENV)/.built
	$(BIN)/pip install -q -e ".[test,plot,lint]" --no-build-isolation
	touch $@

demo: build
	$(BIN)/pylum demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

format: $(VENV)/.test
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' | grep -v third_party | xargs $(BIN)/clang-format -i

lint: $(VENV)/.test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' | grep -v third_party | xargs $(BIN)/clang-format --dry-run -Werror
