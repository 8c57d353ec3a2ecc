# `make` without a target lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# pip compiles modules one after the other, which is a third of its time; `setup` compiles them on all cores.
INSTALL := $(BIN)/pip install -q --no-deps --no-compile
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without compiled modules each process of the service compiles them again: 1.6 s of processor time for one start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast test-engine soak soak-suite soak-gsm8k soak-kill soak-swap soak-fuzz soak-upload soak-bursts soak-clients soak-slots soak-data bench-first-step bench-swap bench-encoding bench-mixed bench-exports bench-tenants bench-keys lint format sync-client openapi lock base-model clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED) ## Create .venv and install the CPU set (about 2.5 minutes)

$(INSTALLED): requirements/torch.txt requirements/cpu.lock requirements/openai-2.txt pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tunewright needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Installing torch for the CPU and the pinned packages"
	@$(INSTALL) --require-hashes -r requirements/cpu.lock & others=$$!; \
	  $(INSTALL) --require-hashes -r requirements/torch.txt 2>/dev/null \
	  || $(INSTALL) --require-hashes -r requirements/torch.txt --index-url https://download.pytorch.org/whl/cpu; \
	  torch=$$?; wait $$others && exit $$torch
	@$(INSTALL) --upgrade --target $(VENV)/openai-2 -r requirements/openai-2.txt & other=$$!; \
	  $(INSTALL) --no-build-isolation -e client -e .; own=$$?; wait $$other && exit $$own
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib $(VENV)/openai-2 || true
	@$(BIN)/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null \
	  || echo "vLLM for the CPU needs libnuma: install it (Debian: apt-get install libnuma1)"
	@touch $@

demo: setup ## Train, serve and compare an adapter, all on this machine
	@$(BIN)/tunewright demo

serve: setup ## Serve the embedded base on 127.0.0.1:8000
	@$(BIN)/tunewright serve

# Two workers more than two cores, since tests wait for other processes (docs/decisions/0041). All tests of a file, and of
# files that share a service, run in one of them, in order; tests that wait and tests that compute alternate
# (tests/scheduling.py).
WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder
FAST := tests/process tests/contract tests/abuse tests/unit

test: setup ## The whole suite, with a real vLLM (about 23 minutes on 2 cores)
	@$(PYTEST) -m "not soak and not gpu" tests/engine $(FAST)
	@cd client && ../$(BIN)/python -m pytest -q

test-fast: setup ## The tests that need no engine (about 15 minutes on 2 cores)
	@$(PYTEST) -m "not engine and not soak and not gpu" $(FAST)

test-engine: setup ## Only the tests that need a real vLLM
	@$(PYTEST) -m "engine and not soak and not gpu" tests/engine

soak: soak-suite soak-gsm8k soak-kill soak-swap soak-fuzz soak-upload soak-bursts soak-clients soak-slots soak-data ## All long tests

soak-suite: setup ## What the suite has no time for: kills of every method, plain scripts of each loss, each pair of samplings, 1,000 adapters
	@$(PYTEST) -m soak tests/engine tests/process tests/unit

soak-gsm8k: setup ## LoRA and QLoRA on 500 rows of GSM8K through the API (needs TUNEWRIGHT_ASSETS)
	@$(BIN)/python -m pytest -s -m soak tests/soak/test_gsm8k.py

soak-kill: setup ## Over 60 kill -9 and SIGSTOP over training, loading and generation (over half an hour)
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_kill.py

soak-swap: setup ## Flips, loads and unloads under 16 streams; an engine killed in the middle
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_swap.py

soak-fuzz: setup ## Thousands of generated requests for each operation (to a running service with TUNEWRIGHT_FUZZ_URL)
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_fuzz.py

soak-upload: setup ## Uploads of 2 GB: refused or stored, with constant memory
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_uploads.py

soak-bursts: setup ## 20 bursts of 256 requests, as far apart as idle connections are kept; with a stand-in for vLLM
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_bursts.py

soak-clients: setup ## instructor, pydantic-ai, LangChain and lm-evaluation-harness against the service
	@test -d $(VENV)/clients/langchain_tests || $(BIN)/pip install -q --target $(VENV)/clients -r requirements/clients.txt
	@TUNEWRIGHT_CLIENTS=$(CURDIR)/$(VENV)/clients $(BIN)/python -m pytest -q -s -m soak tests/soak/test_clients.py tests/soak/test_suites.py

soak-slots: setup ## An answer keeps its adapter while vLLM moves it to other slots; and the fault of vLLM before 0.26
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_slot_layout.py

soak-data: setup ## A file of 5 GB (TUNEWRIGHT_SOAK_BYTES) uploaded, checked, cleaned, planned and trained for 50 steps
	@$(BIN)/python -m pytest -q -s -m soak tests/soak/test_data.py

bench-first-step: setup ## Time and memory of a trainer until its first step on 200,000 rows, and of its second start
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.first_step

bench-swap: setup ## Time from a flip, or a cold load, to the first answer; against vLLM's own load
	@$(BIN)/python -m benchmarks.swap

bench-encoding: setup ## Time to make examples of chat rows, with a large vocabulary
	@$(BIN)/python -m benchmarks.encoding

bench-mixed: setup ## Tokens/s with eight adapters in use, against one and against none
	@$(BIN)/python -m benchmarks.mixed_adapters

bench-tenants: setup ## What a project that floods costs another one that sends a request now and then
	@$(BIN)/python -m benchmarks.tenants

bench-keys: setup ## Times of requests to a service with one API key and to one with 10,000, in turn
	@$(BIN)/python -m benchmarks.keys

bench-exports: setup ## Sizes, memory and tokens/s of a merged model in bfloat16 against AWQ
	@$(BIN)/python -m benchmarks.exports

lint: setup ## Run ruff, mypy and the check of import directions
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup ## Format the code
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

sync-client: ## Generate the SDK's blocking client from its asyncio client
	@$(PYTHON) client/generate_sync.py

openapi: setup ## Generate openapi/openapi.json
	@$(BIN)/python -m tunewright.api.http.openapi openapi/openapi.json

lock: setup ## Resolve requirements/cpu.in into cpu.lock
	@$(BIN)/pip install -q uv
	@$(BIN)/uv pip compile -q requirements/cpu.in --override requirements/overrides.txt --universal --python-version 3.11 \
	  --no-annotate --no-header --generate-hashes -o requirements/cpu.lock
	@$(BIN)/pip uninstall -q -y uv

base-model: setup ## Train the embedded base again (minutes on a GPU, hours on 2 cores)
	@$(BIN)/python recipes/base_model/train.py --out service/tunewright/embedded/model
	@$(BIN)/python recipes/base_model/demo_data.py

clean: ## Remove .venv and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build service/*.egg-info client/*.egg-info
