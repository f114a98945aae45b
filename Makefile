# Every target sets up what it needs, once, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint types unit coverage oldest effects format docs notebooks reproduce benchmarks clean

demo: $(VENV)/installed ## The main job: every algorithm on long-tailed digits.
	$(BIN)/python -m experiments.train digits-lt --overwrite

test: lint types unit effects ## Everything that CI runs.

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

unit: $(VENV)/installed
	$(BIN)/pytest --numprocesses 2 --dist worksteal

coverage: $(VENV)/installed ## The same, and what of the library they run: a fifth slower.
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov --cov-report term

oldest: ## The tests of the core with the oldest versions that setup.cfg allows.
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python \
		--resolution lowest-direct --editable '.[dev]'
	.venv-oldest/bin/pytest --numprocesses 2 --dist worksteal pcn_jax $(patsubst %,tests/test_%.py,\
		balanced balanced_errors class_gradients example_axis frozen interactions \
		known_labels loops samplers transforms)

# The algorithms share programs, such as those that measure: each is compiled once.
effects: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/runs/compiled
effects: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
effects: $(VENV)/installed ## Every claim at fast size, trained anew; fails if an effect vanished.
	rm -rf runs/reproduce
	printf '%s\n' 'theory C1 C3 C4 C8 C12 C13 C14' 'C2 C7 C11' | xargs -P 2 -I {} sh -c \
		'$(BIN)/python -m experiments.reproduce --size fast --claims {} > /dev/null'
	$(BIN)/python -m experiments.reproduce --size fast --check

format: $(VENV)/installed ## Formats the code and mends what can be mended.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: ## Trains the demo anew, and renews its figures and table in docs/.
	rm -rf runs/digits-lt docs/digits-lt
	$(MAKE) demo
	mkdir -p docs/digits-lt
	cp runs/digits-lt/*.png runs/digits-lt/table.md docs/digits-lt/

notebooks: $(VENV)/installed ## Runs every notebook and renders it into docs/.
	rm -rf $(patsubst notebooks/%.ipynb,docs/%,$(wildcard notebooks/*.ipynb))
	JAX_PLATFORMS=cpu $(BIN)/jupyter nbconvert --to markdown --execute \
		--CoalesceStreamsPreprocessor.enabled=True \
		--output-dir docs --NbConvertApp.output_files_dir='{notebook_name}' \
		notebooks/*.ipynb

reproduce: $(VENV)/installed ## Every claim, into RESULTS.md; one alone: make reproduce CLAIM=C4.
	$(BIN)/python -m experiments.reproduce $(if $(CLAIM),--claims $(CLAIM)) $(if $(SIZE),--size $(SIZE))

benchmarks: $(VENV)/installed ## Measures one core again, beside PyTorch: two hours.
	$(BIN)/python -m benchmarks.gradients --fresh
	$(BIN)/python -m benchmarks.training
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 \
		$(BIN)/python -m benchmarks.batch_norm --fresh times norms recalls

clean: ## Removes the environment, caches and runs.
	rm -rf $(VENV) .venv-peers .venv-oldest runs .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pcn_jax needs Python 3.11 or newer, and $(PYTHON) is %d.%d: give another one, make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
