PYTHON ?= python3.11
BIN := .venv/bin

# `make demo`
ARCH ?= llama
SEED ?= 0
KL ?=
# `make test`
SLOW ?=
# `make compile`
TAG ?= $(shell git rev-parse --short=12 HEAD)
PROFILE ?=
REGISTRY ?=
# `make bench-ppo`
PEERS ?=
# `make run`
PARAMS ?=
OUT ?= build/run

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint compile run readme docs lock clean bench-validation bench-reward bench-ppo bench-inference

help: ## List what make can do
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.stamp ## Make .venv with everything pinned in constraints.txt (the other targets do this by themselves)

.venv/.stamp: constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=..."; exit 1; }
	@echo "setting up .venv: minutes, the first time"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq -c constraints.txt torch==2.13.0
	@$(BIN)/pip install -qq -c constraints.txt -e '.[models,pipelines,dev]'
	@touch $@

demo: setup ## Run the whole pipeline on made-up posts: ARCH=llama|t5 SEED=0 KL=0.2
	@$(BIN)/python -m examples.demo --arch $(ARCH) --seed $(SEED) $(if $(KL),--kl $(KL))

test: lint ## Lint, then run the tests; SLOW=1 for every test, those that take minutes too
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(if $(SLOW),,-m "not slow")

lint: setup ## Check style, formatting, and that generated READMEs are fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/python -m components.readme --check

compile: setup ## Compile for both clusters into build/: REGISTRY=host/path TAG=(commit) PROFILE=(both L4 ones)
	@$(BIN)/python -m pipelines.compile --registry "$(REGISTRY)" --tag "$(TAG)" $(if $(PROFILE),--profile "$(PROFILE)")

run: setup ## Run the pipeline on this machine on your data: PARAMS=file.yaml OUT=build/run
	@test -n "$(PARAMS)" || { echo "error: PARAMS: none given, expected a file of parameters; see examples/"; exit 2; }
	@$(BIN)/python -m pipelines.run --params "$(PARAMS)" --out "$(OUT)"

readme: setup ## Write the components' READMEs again from their docstrings
	@$(BIN)/python -m components.readme

docs: setup ## Write again what docs/ has from the code: the picture of the DAG, the reference of parameters
	@$(BIN)/python -m pipelines.diagram > docs/images/rlhf.svg
	@$(BIN)/python -m docs.parameters > docs/parameters.md
	@$(BIN)/python -m docs.data > docs/data.md

bench-validation: setup ## Measure data_validation against a plain loop: 1,000,000 rows into build/bench/validation.json
	@$(BIN)/python -m benchmarks.validation

bench-reward: setup ## Measure the reward trainer against TRL's: pairs a second and memory into build/bench/reward.json
	@$(BIN)/python -m benchmarks.reward

bench-ppo: setup ## Measure the PPO trainer against TRL's: speed, memory, time to quality into build/bench/ppo.json (PEERS=folder)
	@$(BIN)/python -m benchmarks.ppo $(if $(PEERS),--peers "$(PEERS)")

bench-inference: setup ## Measure bulk inference against transformers' pipeline, and ROUGE: into build/bench/inference.json
	@$(BIN)/python -m benchmarks.inference

lock: ## Pin again: the newest versions that pyproject.toml allows, into constraints.txt
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install -qq torch==2.13.0
	build/lock/bin/pip install -qq '.[models,pipelines,dev]'
	{ grep '^#' constraints.txt; build/lock/bin/pip freeze --exclude rlhf-pipeline | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## Remove build/ and caches; .venv stays
	rm -rf build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
