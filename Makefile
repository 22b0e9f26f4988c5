# PYTHON makes the virtual environment; everything else runs inside it.
PYTHON ?= $(shell command -v python3 || command -v python || echo python3)
VENV := .venv
BIN := $(VENV)/bin

# Silences an announcement of the documentation theme that is not about this project.
export NO_MKDOCS_2_WARNING := 1

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-gpu test-integrations docs bench kernels tune clean

help:
	@echo "make demo    pretrain a small backbone on real data in 82 s of one core's time; save plots (ARGS='--loss emc2' ...)"
	@echo "make test    lint, formatting, types, tests, documentation"
	@echo "make test-integrations    the same losses and samplers inside Lightning, Accelerate, Transformers and others"
	@echo "make test-gpu    the tests of losses, sums over pairs, state, processes and the authors' numbers on CUDA GPUs"
	@echo "make docs    serve the documentation on this machine and rebuild it on every change"
	@echo "make bench   time and memory of the objectives beside their peers"
	@echo "make tune       shapes of the fused kernels' tiles, measured on the GPU that is here (ARGS='--widths 128' ...)"
	@echo "make kernels    machine code of the fused kernels for several GPUs, none of which is needed (ARGS='--widths 128' ...)"
	@echo "make clean   remove $(VENV) and everything that was built; results under runs/ stay"

demo: $(VENV)/.examples
	$(BIN)/python examples/pretrain.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# Small tensors: processes, not threads.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --ignore tests/integrations
	$(BIN)/mkdocs build --strict

# On one GPU, but for the tests of several processes: these need a GPU for each, and say so where there are fewer.
test-gpu: $(VENV)/.dev
	$(BIN)/pytest -rs --device cuda tests/contract tests/pairwise tests/objectives tests/processes

test-integrations: $(VENV)/.dev $(VENV)/.integrations $(VENV)/.peers
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile tests/integrations

docs: $(VENV)/.dev
	$(BIN)/mkdocs serve

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/large_batch.py

kernels: $(VENV)/.dev
	$(BIN)/python benchmarks/kernels.py $(ARGS)

tune: $(VENV)/.dev
	$(BIN)/python benchmarks/tune.py $(ARGS)

# Pip comes fresh: the one that older Pythons bring cannot make editable installs from pyproject.toml alone.
$(VENV)/.created:
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	touch $@

$(VENV)/.%: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --editable '.[$*]'
	touch $@

# Their losses need PyTorch alone, the rest of them much more. A folder of their own keeps them from being imported by chance.
$(VENV)/.peers: | $(VENV)/.created
	$(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/peers libauc==2.0.1 solo-learn==1.0.2
	touch $@

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
