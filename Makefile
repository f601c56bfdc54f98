# make demo       fit the bundled data; writes demo_output/index.html
# make test       lint, types and all tests
# make fast       the fast tests only
# make newest     the fast tests on the newest Python found, with the newest versions of all packages
# make lowest     the fast tests with the oldest versions that pyproject.toml allows
# make package    build wheel and sdist in dist/, check them, and try both in a new environment: the
#                 demo with the wheel, the fast tests with what the sdist contains
# make notebooks  run the notebooks and save them in place, with their outputs
# make bench      compare speed, memory and held-out ELBO with scvi-tools (about 15 minutes)
#
# Each target creates the environment that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

VENV_LOWEST := .venv-lowest
VENV_PACKAGE := .venv-package
# Extras without which fast tests would be left out, but for the comparisons with scvi-tools.
TESTED := arviz,donors,fast,notebook,scanpy,test

.PHONY: demo test fast newest package lowest notebooks bench clean

# Each stamp is newer than the files it was installed from, so that a second run installs nothing.
$(VENV)/python.stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt $(VENV)/python.stamp
	$(PIP) --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/python.stamp
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/pyro-contrastive demo --out demo_output --overwrite

test: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

fast: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

newest:
	.ci/newest

# Tests that need files of the sdist beside the code; `make package SDIST_TESTS=tests` runs all.
SDIST_TESTS = tests/data tests/saving tests/interop tests/test_import.py tests/test_notebooks.py

package:
	rm -rf dist
	$(PYTHON) -m venv --clear $(VENV_PACKAGE)
	$(VENV_PACKAGE)/bin/python -m pip install --quiet --disable-pip-version-check build twine
	$(VENV_PACKAGE)/bin/python -m build --outdir dist .
	$(VENV_PACKAGE)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV_PACKAGE)
	$(VENV_PACKAGE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt dist/*.whl
	cd $(VENV_PACKAGE) && bin/pyro-contrastive demo --out demo --max-epochs 5
	mkdir $(VENV_PACKAGE)/sdist && tar -xzf dist/*.tar.gz -C $(VENV_PACKAGE)/sdist --strip-components=1
	$(VENV_PACKAGE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt "$(VENV_PACKAGE)/sdist[$(TESTED)]"
	cd $(VENV_PACKAGE)/sdist && OMP_NUM_THREADS=1 ../bin/python -m pytest -n auto $(SDIST_TESTS)

# Old versions warn of deprecations that concern only later versions: warnings are not errors here.
lowest:
	$(PYTHON) -m venv --clear $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .ci/lowest.txt --editable ".[$(TESTED)]"
	OMP_NUM_THREADS=1 $(VENV_LOWEST)/bin/python -m pytest -n auto --override-ini=filterwarnings=default

notebooks: $(VENV)/dev.stamp
	$(BIN)/python notebooks/execute.py

bench: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --write

clean:
	rm -rf $(VENV) $(VENV_LOWEST) $(VENV_PACKAGE) .venv-newest dist demo_output
