# `make demo` and `make test` each stand alone in a fresh clone: Python 3.11 and make are all they need.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONSAFEPATH = 1
export HF_HUB_OFFLINE = 1
export TRANSFORMERS_VERBOSITY = error
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types unit bench clean

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable ".[test]"
	@# timm asks for torchvision, which the tests replace (tests/timm_import.py); all else that it needs is there.
	$(PIP) --no-deps timm
	@touch $@ $(VENV)/.demo

$(VENV)/.peers: $(VENV)/.test
	$(PIP) --editable ".[peers]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/sentence_encoder.py

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	@mkdir -p .typing && ln -sfn .. .typing/opgraft
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/python -m pytest

evidence-%: $(VENV)/.test
	$(BIN)/python tests/evidence_$*.py

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/optimizer_speed.py
	$(BIN)/python benchmarks/optimizer_speed.py --scaling
	$(BIN)/python benchmarks/large_weights.py
	$(BIN)/python benchmarks/analysis_speed.py

clean:
	rm -rf .typing .mypy_cache .ruff_cache .pytest_cache build *.egg-info demo-output
