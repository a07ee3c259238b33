SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The newest of these that is Python 3.11 or later; `make PYTHON=/path/to/python` overrides the search.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo
DEMO_MINUTES ?= 5
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "rmat needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: rmat needs Python 3.11 or newer" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV) (about a minute)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## train `tiny` for five minutes, show what the memory is worth, complete a function
	rm -rf $(DEMO)
	$(BIN)/rmat train --preset tiny --data python-stdlib --out $(DEMO) train.max_minutes=$(DEMO_MINUTES) train.steps=100000
	$(BIN)/rmat eval ablation $(DEMO) --mode zeroed --mode shuffled --max-bytes 300000
	@printf '\ncompleting a function: def read_lines(path)\n\n'
	@$(BIN)/rmat generate $(DEMO) --max-new-tokens 160 --temperature 0.6 --top-p 0.9 --seed 1 $$'def read_lines(path):\n    """Return the lines of a file."""\n'

# A text of yours: make pretrained BOOK=path
STORY := examples/lighthouse.txt
BOOK ?= $(STORY)
QUESTIONS ?= $(if $(filter $(STORY),$(BOOK)),"What is the name of Hester's dog?" "Who is the boatman?" \
	"Who is the captain of the Marigold?","What is this text about?" "Who is the text about?" "Where does it take place?")
PRETRAINED := runs/pretrained
SMOLLM2 = $(BIN)/rmat $(1) smollm2 --session book --sessions $(PRETRAINED)
.PHONY: pretrained
pretrained: $(STAMP) ## bring SmolLM2 (93 MB), read a text into a state of one size, ask about it, chat; BOOK=path
	rm -rf $(PRETRAINED)
	$(call SMOLLM2,read) --replace '$(BOOK)'
	@for question in $(QUESTIONS); do \
		printf '\n> %s\n' "$$question"; $(call SMOLLM2,ask) --max-new-tokens 40 "$$question"; echo; done
	@printf '\n> What is the capital of France?\n> And of Italy?\n'
	@printf 'What is the capital of France?\nAnd of Italy?\n' | $(BIN)/rmat chat smollm2 --temperature 0

.PHONY: test
test: lint ## lint, types and the whole test suite
	@# With byte code kept, every process of the suite starts seconds sooner, whatever the environment says.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 3 --dist loadfile

.PHONY: test-model
test-model: $(STAMP) ## the core alone: contracts, model, operations, reference, state
	$(BIN)/python -m pytest -q tests/contracts tests/model tests/ops tests/reference tests/storage tests/test_accounting.py

.PHONY: lint
lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: pretrained-check
pretrained-check: $(STAMP) ## SmolLM2 beside transformers: logits, greedy text, memory of an import; 93 MB once
	$(BIN)/python -m pytest -q -m smollm2 tests/pretrained/test_smollm2.py

.PHONY: transformers-check
transformers-check: $(STAMP) ## transformers' own tests of models on ours, from its source distribution (11 MB); minutes
	@$(PIP) parameterized
	$(BIN)/python scripts/transformers_check.py

.PHONY: lm-eval-check
lm-eval-check: $(STAMP) ## our models in lm-eval, which it installs (740 MB)
	@$(PIP) --no-build-isolation -e '.[eval]'
	$(BIN)/python -m pytest -q tests/integrations/test_lm_eval.py

.PHONY: docs
docs: $(STAMP) ## the documentation as a site in build/site; installs MkDocs (60 MB)
	@$(PIP) --no-build-isolation -e '.[docs]'
	$(BIN)/python scripts/docs_site.py

# EXTRAS="serve hf": only those.
EXTRAS ?=
.PHONY: extras-check
extras-check: $(STAMP) ## the wheel alone, then with one extra at a time, each in a new environment; 10 minutes
	$(BIN)/python scripts/extras_check.py $(EXTRAS)

.PHONY: slow
slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

.PHONY: results-quick
results-quick: $(STAMP) ## recall, MQAR, pass key and bits per byte by position, trained and measured anew; under 30 minutes
	$(BIN)/python benchmarks/results.py --quick --runs runs/results --results runs/measured

DATA ?= data
.PHONY: results
results: $(STAMP) ## all results but the quick ones; hours; text of your own in DATA=folder
	$(BIN)/python benchmarks/results.py --data $(DATA) --runs runs/results --results runs/measured
	$(BIN)/python benchmarks/memory_axes.py --out runs/measured/memory_axes.json

.PHONY: bench
bench: $(STAMP) ## throughput of the memory's two forms beside `local` and `full`, tiny and small
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/throughput.py --size small --lengths 1024 --tokens 4096 --rounds 3 --out results/throughput-small.json
	$(BIN)/python benchmarks/throughput.py --size small --variants admitted recommended local --lengths 16384 --rounds 2 \
		--out results/throughput-small-long.json

# PEERS="--quick", or any of the options of benchmarks/peers.py.
PEERS ?=
.PHONY: peers
peers: $(STAMP) ## speed, memory and state beside other systems, which it installs; about an hour, or PEERS="--quick"
	@$(PIP) --no-build-isolation -e '.[peers]'
	@$(PIP) --no-deps "$$(grep '^block-recurrent-transformer-pytorch==' constraints.txt)"
	$(BIN)/python benchmarks/peers.py $(PEERS)

.PHONY: bench-serving
bench-serving: $(STAMP) ## 64 streams in one batch and over HTTP, time to answer after long documents; about 10 minutes
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/serving_load.py
	$(BIN)/python benchmarks/answer_time.py

# On a machine with a GPU and no network: runs on the Python that has torch, installs nothing.
.PHONY: gpu-check
gpu-check: ## parity and speed on a GPU, without .venv (make gpu-check PYTHON=...)
	PYTHONPATH=. $(PYTHON) scripts/gpu_check.py
