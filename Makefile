# What developers type. `make` alone lists it.
PYTHON ?= python

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

build:  ## compile the kernels in place (GNNCY_BUILD=release|debug|coverage, GNNCY_ANNOTATE=1)
	$(PYTHON) setup.py build_ext --inplace

test:  ## run all tests, with the examples of docstrings and guides
	$(PYTHON) -m pytest

quick:  ## run the tests that are not slow
	$(PYTHON) -m pytest -m "not slow"

lint:  ## ruff, mypy and cython-lint
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	cython-lint --no-pycodestyle $$(git ls-files 'gnncy/_kernels/*.pyx' 'gnncy/_kernels/*.pxd')

docs:  ## build docs/_build/html, warnings as errors
	$(PYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

bench:  ## every asv benchmark at small sizes, once
	GNNCY_BENCH=quick OPENBLAS_NUM_THREADS=1 asv run --python=same --quick --show-stderr

peers:  ## every comparison with other libraries
	$(PYTHON) -m asv_bench.peers

ci:  ## what runs on a new machine
	bash .ci/run

clean:  ## remove what builds and runs leave
	rm -rf build dist docs/_build docs/api/generated .asv .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find gnncy/_kernels \( -name '*.c' -o -name '*.so' -o -name '*.html' \) -delete
	find gnncy/_kernels/avx2 -name '*.p[yx][xd]' -delete

.PHONY: help build test quick lint docs bench peers ci clean
