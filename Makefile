# make demo    run the main study and write its report
# make test    lint, types and tests
# make setup   make .venv alone; with TORCH=cuda for NVIDIA GPUs
# make clean   remove .venv and caches; results in runs/ stay

# The stamp remembers which torch was asked for, so that a later "make demo" leaves it alone.
TORCH ?= $(or $(patsubst .venv/.setup-%,%,$(wildcard .venv/.setup-*)),cpu)
STAMP := .venv/.setup-$(TORCH)
PYTHON := .venv/bin/python

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup
	scripts/setup $(TORCH)
	@touch $@

demo: setup
	.venv/bin/offmodel run studies/quick.yaml

lint: setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

test: lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
