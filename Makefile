PYTHON ?= python3.11
BIN := .venv/bin

# `make demo`
ARCH ?= llama
SEED ?= 0
KL ?=
RUNNER ?= process
# `make test`
SLOW ?=
# `make build push`, and what uses the images; without TAG, the commit
REGISTRY ?=
TAG ?=
STAGES ?=
BASE_IMAGE ?=
TORCH ?= cuda
TORCH_INDEX ?=
VLLM ?=
BUILD_NETWORK ?=
LAYER_CACHE ?=
# `make compile`; with LOCATION, for a region that must have the accelerators
PROFILE ?=
LOCATION ?=
# `make plan`
MODEL ?=
TUNING ?=
# `make bench-ppo`
PEERS ?=
# `make run`
PARAMS ?=
OUT ?= build/run
PIPELINE ?= rlhf
# `make submit`; secrets come from files and the environment only, docs/submit.md
PLATFORM ?=
WAIT ?= 1
CACHE ?= 1
PLAN ?= 1
SUBMIT_OPTIONS = params=PARAMS registry=REGISTRY tag=TAG profile=PROFILE name=NAME pipeline-root=ROOT \
	service-account=SERVICE_ACCOUNT follow=FOLLOW stop=STOP
SUBMIT_OPTIONS_kubeflow = host=HOST namespace=NAMESPACE experiment=EXPERIMENT token-file=TOKEN_FILE \
	dex-user=DEX_USER password-file=PASSWORD_FILE dex-connector=DEX_CONNECTOR ca-file=CA_FILE
SUBMIT_OPTIONS_vertex = project=PROJECT location=LOCATION encryption-key=CMEK network=NETWORK api-endpoint=API_ENDPOINT

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-rft test lint build push compile plan run submit readme docs notebooks release sbom audit licences lock clean bench-validation bench-reward bench-ppo bench-inference

help: ## List what make can do
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.stamp ## Make .venv with everything pinned in constraints.txt (the other targets do this by themselves)

.venv/.stamp: constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or set PYTHON=..."; exit 1; }
	@echo "setting up .venv: minutes, the first time"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq -c constraints.txt torch==2.13.0
	@$(BIN)/pip install -qq -c constraints.txt -e '.[models,pipelines,dev,docs]'
	@touch $@

demo: setup ## Run the whole pipeline on made-up posts: ARCH=llama|t5 SEED=0 KL=0.2 RUNNER=process|docker
	@$(BIN)/python -m examples.demo --arch $(ARCH) --seed $(SEED) $(if $(KL),--kl $(KL)) \
		--runner $(RUNNER) --registry "$(REGISTRY)" --tag "$(TAG)"

demo-rft: setup ## Tune the demo's policy against a grader of twenty lines, without preferences: SEED=0
	@$(BIN)/python -m examples.demo.rft --seed $(SEED)

test: lint ## Lint, then run the tests; SLOW=1 for every test, those that take minutes too
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(if $(SLOW),,-m "not slow")

lint: setup ## Check style, formatting, and that generated READMEs are fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/python -m components.readme --check

# These need Python 3.11 and a container engine, and nothing installed.
build: ## Build the stages' images: REGISTRY=host/path TAG=(commit) STAGES="..." BASE_IMAGE=... TORCH=cuda|cpu VLLM=version
	@$(PYTHON) -m containers.build build --registry "$(REGISTRY)" --tag "$(TAG)" --stages "$(STAGES)" \
		--base-image "$(BASE_IMAGE)" --torch "$(TORCH)" --torch-index "$(TORCH_INDEX)" --vllm "$(VLLM)" \
		--network "$(BUILD_NETWORK)" $(if $(LAYER_CACHE),--cache)

push: ## Push them, and record their digests in build/images.json: REGISTRY=host/path TAG=(commit) STAGES="..."
	@$(PYTHON) -m containers.build push --registry "$(REGISTRY)" --tag "$(TAG)" --stages "$(STAGES)" $(if $(LAYER_CACHE),--cache)

compile: setup ## Compile for both clusters into build/, with the images that were pushed: PROFILE=(both L4 ones) LOCATION=(Vertex)
	@$(BIN)/python -m pipelines.compile --registry "$(REGISTRY)" --tag "$(TAG)" $(if $(PROFILE),--profile "$(PROFILE)") \
		$(if $(LOCATION),--location "$(LOCATION)")

plan: setup ## See whether a model fits a profile: MODEL=id PROFILE=name TUNING=full|lora|qlora PARAMS=file.yaml
	@test -n "$(PROFILE)" || { echo "error: PROFILE: none given, expected one of $(basename $(notdir $(wildcard pipelines/profiles/*.yaml)))"; exit 2; }
	@$(BIN)/python -m pipelines.plan --profile "$(PROFILE)" $(if $(MODEL),--model "$(MODEL)") $(if $(TUNING),--tuning "$(TUNING)") $(if $(PARAMS),--params "$(PARAMS)")

build/tools/.stamp:
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/pip install -qq cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

sbom: build/tools/.stamp ## List the parts of the images, as CycloneDX, into build/containers/sbom.json: TORCH=cuda|cpu
	@build/tools/bin/python -m containers.contents sbom --torch "$(TORCH)"

audit: build/tools/.stamp ## List known vulnerabilities of what the images hold: TORCH=cuda|cpu
	@build/tools/bin/python -m containers.contents audit --torch "$(TORCH)"

licences: ## List the licences of what the images hold, which must be built: REGISTRY=host/path TAG=(commit)
	@$(PYTHON) -m containers.contents licences --registry "$(REGISTRY)" --tag "$(TAG)"

run: setup ## Run a pipeline on this machine on your data: PARAMS=file.yaml OUT=build/run PIPELINE=rlhf|rft
	@test -n "$(PARAMS)" || { echo "error: PARAMS: none given, expected a file of parameters; see examples/"; exit 2; }
	@$(BIN)/python -m pipelines.run --params "$(PARAMS)" --out "$(OUT)" --pipeline "$(PIPELINE)"

submit: setup ## Submit to a cluster and follow: PLATFORM=kubeflow|vertex PARAMS=file.yaml ... WAIT=1; docs/submit.md
	@test -n "$(PLATFORM)" || { echo "error: PLATFORM: none given, expected kubeflow or vertex"; exit 2; }
	@$(BIN)/python -m pipelines.submit $(PLATFORM) --pipeline "$(PIPELINE)" \
		$(foreach pair,$(SUBMIT_OPTIONS),$(call given,$(pair))) $(if $(filter 0,$(WAIT)),--no-wait) \
		$(if $(filter 0,$(CACHE)),--no-cache) $(if $(filter 0,$(PLAN)),--no-plan) \
		$(foreach pair,$(SUBMIT_OPTIONS_$(PLATFORM)),$(call given,$(pair))) \
		$(if $(NEW_EXPERIMENT),--new-experiment) $(foreach label,$(LABELS),--label "$(label)")

# --option "value", of option=VARIABLE, where the variable is set
given = $(if $($(word 2,$(subst =, ,$(1)))),--$(word 1,$(subst =, ,$(1))) "$($(word 2,$(subst =, ,$(1))))")

readme: setup ## Write the components' READMEs again from their docstrings
	@$(BIN)/python -m components.readme

docs: setup ## Write again what docs/ has from the code, then build the site into build/site; a dead link fails
	@$(BIN)/python -m pipelines.diagram docs/images
	@$(BIN)/python -m docs.over_optimisation docs/images
	@mkdir -p build; for page in parameters data platforms commands errors; do \
		$(BIN)/python -m docs.$$page > build/$$page.md && mv build/$$page.md docs/$$page.md || exit 1; done
	@$(BIN)/python -m docs.site

notebooks: setup ## Run the notebooks (minutes) and write them with what they show into docs/notebooks/; needs chromium
	@$(BIN)/python -m docs.notebooks

release: setup ## Check version and changelog, and write what a release publishes into build/release: REGISTRY= TAG= as pushed
	@$(BIN)/python -m pipelines.release --registry "$(REGISTRY)" --tag "$(TAG)"

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
	build/lock/bin/pip install -qq '.[models,pipelines,dev,docs]'
	{ grep '^#' constraints.txt; build/lock/bin/pip freeze --exclude rlhf-pipeline | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	build/lock/bin/pip install -qq --upgrade pip
	build/lock/bin/python -m containers.lock

clean: ## Remove build/ and caches; .venv stays
	rm -rf build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
