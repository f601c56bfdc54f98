# make demo   the main job on the bundled data, from nothing; leaves demo_output/index.html
# make test   lint, types and all tests, from nothing
# make notebooks   run the notebooks and save them with their outputs, in place
# make bench  side by side with scvi-tools: speed, memory, held-out ELBO (some 15 minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test fast notebooks bench clean

# Each stamp is newer than what it was installed from, so that a second run starts at once.
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

notebooks: $(VENV)/dev.stamp
	$(BIN)/python notebooks/execute.py

bench: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --write

clean:
	rm -rf $(VENV) demo_output
