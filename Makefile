# The one way to run each thing, for people and for CI. `make` alone explains every target.
VENV := .venv
BIN := $(VENV)/bin
DATA ?= .weft
PORT ?= 8000
BASE ?=
REPLICAS ?= 1
SECONDS ?= 600
FLIPS ?= 1000
CASES ?= 10000
UV_VERSION := 0.13.9
EXTRAS := --extra service --extra trainer --extra inference --extra cpu --extra local --extra bench --extra dev
PROJECTS := pyproject.toml clients/python/pyproject.toml
SOURCES := service trainer inference deploy clients tests

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell $(name) -c \
	'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	</dev/null >/dev/null 2>&1 && echo $(name))))
# uv does not read pip's settings; where the machine has any, in its environment or in files, they hold for uv too.
pip_setting = $(shell $(BIN)/python -m pip config list 2>/dev/null | sed -n "s/^\(:env:\|global\)\.$(1)='\(.*\)'$$/\2/p" | head -n 1)
FIND_LINKS = $(or $(UV_FIND_LINKS),$(call pip_setting,find-links))
INDEX = $(or $(UV_DEFAULT_INDEX),$(call pip_setting,index-url))
CERTIFICATES = $(or $(SSL_CERT_FILE),$(call pip_setting,cert))
# The CPU build of torch comes from a folder where the machine has one, else from PyTorch's own index.
UV = $(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)",UV_TORCH_BACKEND=cpu) $(if $(INDEX),UV_DEFAULT_INDEX="$(INDEX)") \
	$(if $(CERTIFICATES),SSL_CERT_FILE="$(CERTIFICATES)") $(BIN)/uv
STAMP := $(VENV)/installed
# What the environment was installed from, and where: an unchanged key means there is nothing to do.
KEY = $$({ pwd; cat requirements.lock $(PROJECTS); } | sha256sum)

.DEFAULT_GOAL := help
.PHONY: help setup up down status demo test test-unit test-stack bench-training bench-training-gpu bench-training-memory chaos-training chaos-service chaos-usage chaos-hostile chaos-flips bench-gateway bench-serving chaos-serving fuzz-api openapi lint format lock tiny-base clean

help: ## Explain these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: DATA=$(DATA) (data folder)  PORT=$(PORT)  REPLICAS=$(REPLICAS)  BASE=<folder or hub id of a base model; empty: the tiny one>"

setup: ## Install everything into .venv at the locked versions; at once where nothing changed
	@test "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" || $(MAKE) --no-print-directory $(STAMP)

.PHONY: $(STAMP)
$(STAMP): $(BIN)/uv
	@rm -f $@
	@echo "Installing the locked versions into $(VENV)"
	@$(UV) pip sync --python $(BIN)/python requirements.lock
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable . --editable clients/python
	@echo "$(KEY)" > $@

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 with its venv module on the path;" \
		"install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

up: setup ## Run the whole stack in the foreground; Ctrl-C stops it
	@exec $(BIN)/weftd up --data $(DATA) --port $(PORT) --replicas $(REPLICAS) $(if $(BASE),--base $(BASE))

down: setup ## Stop the stack that `make demo` left running
	@$(BIN)/weftd down --data $(DATA)

status: setup ## Show what runs, since when and in how much memory
	@$(BIN)/weftd status --data $(DATA)

demo: setup ## Two tenants train their own adapters over one base and get different answers
	@$(BIN)/python -m deploy.local.demo --data $(DATA) --port $(PORT) $(if $(BASE),--base $(BASE))

test: test-unit test-stack ## Run every test

test-unit: setup ## Run the tests that need no whole stack
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not stack and not gpu"

test-stack: setup ## Run the tests against the whole embedded stack, one after the other
	$(BIN)/python -m pytest -m "stack and not gpu"

bench-training: setup ## Measure the training engine against one job at a time, PEFT and TRL (ten minutes)
	@$(BIN)/python -m tests.benchmarks.training

bench-training-gpu: setup ## The same of bases of 0.6B and 8B shape, where there is an accelerator
	@$(BIN)/python -m tests.benchmarks.training.accelerator

bench-training-memory: setup ## Measure what jobs and passes take in memory against the formula that admits them
	@$(BIN)/python -m tests.benchmarks.training_memory

chaos-training: ROUNDS ?= 200
chaos-training: setup ## Kill, evict and poison training engines for ROUNDS=200 rounds; no healthy job may notice
	@$(BIN)/python -m tests.chaos.training --rounds $(ROUNDS)

chaos-service: ROUNDS ?= 500
chaos-service: setup ## Kill the service at random under job creation for ROUNDS=500 rounds; no job lost or doubled
	@CHAOS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -q -s tests/chaos/test_service_kill.py

chaos-usage: ROUNDS ?= 100
chaos-usage: setup ## Kill the gateway ROUNDS=100 times under traffic; the ledger equals what clients were told
	@CHAOS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -q -s tests/chaos/test_usage_kill.py

bench-gateway: setup ## Measure the gateway beside a naked pass-through and, where LITELLM=<its command>, LiteLLM
	@$(BIN)/python -m tests.benchmarks.gateway

bench-serving: setup ## Measure the whole path against a naked vLLM, adapters by the hundred, cold adapters, fresh models
	@$(BIN)/python -m tests.benchmarks.serving

chaos-serving: setup ## Evict, delete and kill -9 under traffic over two replicas for SECONDS=$(SECONDS)
	@$(BIN)/python -m tests.chaos.serving --seconds $(SECONDS)

chaos-hostile: setup ## Offer a replica every hostile adapter; other tenants' answers stay the same to the byte
	@$(BIN)/python -m tests.chaos.hostile

chaos-flips: setup ## Flip an alias FLIPS=$(FLIPS) times under traffic over two gateways
	@$(BIN)/python -m tests.chaos.flips --flips $(FLIPS)

fuzz-api: setup ## Send CASES=$(CASES) generated requests over the whole API with two tenants' keys
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -q -s tests/service/contract/test_fuzz.py

openapi: setup ## Write docs/openapi.json and docs/compatibility.md anew from the code
	$(BIN)/python -m service openapi > docs/openapi.json
	$(BIN)/python -m tests.service.contract.compatibility > docs/compatibility.md

lint: setup ## Check style, types and import arrows
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: setup ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# hatchling and editables build the two editable projects: locked with the rest, so that a build fetches nothing.
lock: setup ## Choose versions anew and write requirements.lock
	@printf 'hatchling\neditables\n' | $(UV) pip compile pyproject.toml - $(EXTRAS) --upgrade --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet --output-file requirements.lock

tiny-base: setup ## Train the tiny base model again from nothing (minutes)
	$(BIN)/python -m deploy.local.tiny_base.train

clean: down ## Stop the stack and remove its data folder
	rm -rf $(DATA)
