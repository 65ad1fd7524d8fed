# Everything runs in .venv, which the first target that needs it creates.

PYTHON ?= python3
# Installed first and on its own, so that nothing else chooses it. If pip offers you a
# CUDA build that you do not want:
#   make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" demo
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all methods check coverage bench safety fuzz clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: $(VENV)/.stamp  ## Prune and quantise a small network, from training to the integer program
	$(BIN)/zerobit demo

test: check  ## Check, then run the tests; of the model matrix a few networks
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not matrix and not every_method"
	$(BIN)/python benchmarks/coverage.py --check --tier quick

test-all: check $(VENV)/.stamp-matrix  ## The same with every network of the model matrix
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not every_method"
	$(BIN)/python benchmarks/coverage.py --check --tier all

methods: $(VENV)/.stamp-test  ## Every method on every network of the zoo under every cost (40 minutes to two hours)
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/laws/test_methods.py

coverage: $(VENV)/.stamp-matrix  ## Write docs/coverage.md anew
	$(BIN)/python benchmarks/coverage.py

check: $(VENV)/.stamp-test  ## Lint, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.stamp  ## Time one step of the search, a capture, and projections to budgets
	$(BIN)/python benchmarks/search_step.py
	$(BIN)/python benchmarks/capture_time.py
	$(BIN)/python benchmarks/projection_time.py

safety: $(VENV)/.stamp-test  ## 100 short searches of every method at extreme settings: is every number finite?
	PYTHONPATH=tests $(BIN)/python benchmarks/numerical_safety.py --jobs 2

fuzz: $(VENV)/.stamp-test  ## 500 random networks through lowering and C under sanitizers
	PYTHONPATH=tests $(BIN)/python tests/fuzz_c99.py --networks 500

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# -qq: pip prints its errors, and nothing else.
# A torch that is already in .venv is kept: it may be the build for your GPU.
$(VENV)/.stamp: pyproject.toml
	@echo "Setting up $(VENV): PyTorch and the packages that zerobit runs on (once, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -qq $(TORCH)
	@$(BIN)/python -m pip install -qq -e '.[onnx,zoo]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp
	@echo "Adding the test tools to $(VENV): pytest, ruff, basedpyright, import-linter"
	@$(BIN)/python -m pip install -qq -e '.[test]'
	@touch $@

$(VENV)/.stamp-matrix: $(VENV)/.stamp-test
	@echo "Adding transformers to $(VENV): networks that others wrote, for the model matrix"
	@$(BIN)/python -m pip install -qq -e '.[matrix]'
	@touch $@
