# Everything a contributor types. `make help` lists the targets; CI runs `make test` and nothing cleverer.
.DEFAULT_GOAL := help
.PHONY: help demo setup test test-fast test-cluster check check-kernels format lock crds cluster cluster-bin bench-router fuzz-router bench-engine bench-memory bench-kernels bench-experts bench-operator simulate npm-sdk soak tiny-model clean

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## one router and two workers with a tiny M3 on this machine's CPU, until Ctrl-C
	@scripts/bootstrap demo
	@$(BIN)/m3 up

setup: ## .venv with everything a contributor needs
	@scripts/bootstrap dev

test: setup npm-sdk check test-fast test-cluster ## everything: linters, types, unit and end-to-end tests, Kubernetes included

test-fast: setup ## what needs no cluster
	$(PYTEST) -n auto --maxprocesses 8 --dist loadgroup -m "not cluster and not real_cluster"

test-cluster: cluster-bin ## a real control plane, and two real nodes where this machine can give them
	$(PYTEST) -n 2 --dist loadgroup -m "cluster or real_cluster"

check: setup ## linters, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-kernels: setup ## the GPU kernels without a GPU: every case (`make test` has the short ones) in Triton's interpreter, each configuration compiled for Hopper
	TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(PYTEST) -q -n auto tests/kernels/gpu/interpreted
	$(BIN)/python -m m3_kernels.gpu.compile_table
	$(PYTEST) -q tests/kernels/gpu/test_compile_gate.py -k "not every_configuration"

format: setup ## what can be mended by a tool
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## write requirements/*.txt anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--all-extras pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra operator --extra router --extra worker --extra demo -c requirements/dev.txt pyproject.toml -o requirements/demo.txt

crds: setup ## write the CRDs anew from the models
	$(BIN)/m3 crd --output manifests/crds
	$(BIN)/m3 crd --output charts/m3serve/crds

cluster-bin: setup ## build Kubernetes for the tests (17 minutes once, then cached outside the repository)
	@PYTHONPATH=tests/support $(BIN)/python -m m3_testcluster build

cluster: cluster-bin ## a real two-node cluster until Ctrl-C; prints the kubeconfig to use (needs root)
	@PYTHONPATH=tests/support $(BIN)/python -m m3_testcluster up

bench-router: setup ## the router against nginx, vLLM Router and SMG in front of the same mock engines; ARGS=--quick: whether it runs; ARGS=--simulate: placement
	PYTHONPATH=tests/support $(BIN)/python benchmarks/router/bench.py $(ARGS)

fuzz-router: setup ## ten minutes of hostile clients and workers against the compiled router, and bytes cut anywhere; prints its seed
	M3_FUZZ_EXAMPLES=3000 $(PYTEST) -q tests/router/fuzz/test_splits.py
	PYTHONPATH=tests/support $(BIN)/python -m m3_fuzz --compiled "$$(scripts/compile-router)" --seconds 600 $(ARGS)

bench-engine: setup ## the engine against transformers and mlx-lm on the same tiny weights, in one run
	$(BIN)/python benchmarks/engine/bench.py

bench-memory: setup ## what `m3 plan` says of a rank's memory, against what the ranks of a real engine take
	PYTHONPATH=tests/support $(BIN)/python benchmarks/engine/memory.py $(ARGS)

bench-kernels: setup ## the attention kernels on this machine's GPU, in one run; ARGS=--cpu: without one, and without times
	$(BIN)/python benchmarks/kernels.py $(ARGS)

bench-experts: setup ## how even experts are placed, what following a drift moves, how long planning takes; writes the picture too
	PYTHONPATH=tests/support $(BIN)/python benchmarks/operator/experts.py $(ARGS)

SEEDS ?= 1-200
simulate: setup ## the whole operator against a model cluster with random faults; SEEDS=1-200: which ones
	PYTHONPATH=tests/support $(BIN)/python -m m3_simulation --seeds $(SEEDS) $(ARGS)

bench-operator: setup cluster-bin ## the operator with 1,000 M3Deployments on a real API server; writes the table; ARGS=--quick: whether it runs
	PYTHONPATH=tests/support $(BIN)/python benchmarks/operator/bench.py $(ARGS)

npm-sdk: ## the openai npm SDK, for the one test that uses it; without npm or its registry that test is left out
	@cd tests/worker/openai_npm && if [ node_modules/.package-lock.json -nt package-lock.json ]; then :; \
	elif command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund || echo "npm-sdk: could not be fetched"; \
	else echo "npm-sdk: npm is not installed"; fi

soak: setup ## ten minutes of random load on a tiny engine; every stream must equal its undisturbed run
	$(BIN)/python benchmarks/engine/soak.py

tiny-model: setup ## train anew the tiny M3 that ships with the worker (under 10 minutes on 2 cores)
	cd training && ../$(BIN)/python -m tiny_model

clean: ## caches of the tools; not .venv, not the cluster's binaries
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
