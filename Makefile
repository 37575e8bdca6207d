# `make demo` and `make test` make the environment themselves. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint audit dist test-slow fuzz test-gpu train-tiny samples clean

# The environment is made again when the dependencies change. torch is named first, so that no other package picks it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch>=2.6,<2.14"
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.trains: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vlmamba-eval --model vlmamba-tiny --tasks gqa,pope,mme --data samples --out demo
	$(BIN)/vlmamba-eval view demo/runs --out demo/report.html --no-open

# JOBS tests at a time; each takes one core.
test: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Known vulnerabilities of what is installed, if the package index tells them.
audit: $(VENV)/.tested
	$(BIN)/python -m tests.supply.audit

# Wheel, source archive, and the wheel's bill of materials (CycloneDX).
dist: $(VENV)/.tested
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m tests.supply.sbom dist/*.whl

test-slow: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal

# Every reader, with FUZZ times as many odd files as in test-slow, others each time.
FUZZ ?= 5
fuzz: $(VENV)/.tested
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal $(shell grep -rl tests.odd tests --include='test_*.py')

test-gpu: $(VENV)/.tested
	$(BIN)/python -m pytest -m gpu

# Nine minutes on an H100, days on two CPU cores; there MICRO=16 takes 40 % less. Stopped at any point, the
# same command resumes.
STAGES := 0-pretraining 1-alignment 2-instruction
train-tiny: $(VENV)/.trains
	$(BIN)/vlmamba-train tiny --out runs/tiny $(if $(MICRO),$(foreach stage,$(STAGES),--set $(stage).micro_batch_size=$(MICRO)))

samples: $(VENV)/.installed
	$(BIN)/python -m vlmamba_eval.tasks.samples

clean:
	rm -rf $(VENV) demo dist
