# The two commands of the README, and what CI runs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test test-gpuless check docs schemas image lock wheel clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(VENV)/installed ## Run the smoke recipe (no GPU, minutes) and verify its result.
	@$(BIN)/n4090-kit run --recipe smoke
	@echo
	@$(BIN)/n4090-kit verify "$$(ls -td "$${N4090_WORK:-.}"/runs/smoke-*/result.json | head -n 1)"

test: $(VENV)/installed ## Run the tests; those that were skipped say why.
	OMP_NUM_THREADS=1 GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile $(PYTEST_ARGS)

# The CUDA build of torch on a stand-in for a GPU: tests/nullgpu/README.md. FULL=1 adds the long ones.
test-gpuless: $(VENV)/installed ## Run the trainer's CUDA paths on a null device, without a GPU.
	$(BIN)/python -m pytest -q -rs -n 0 tests/nullgpu $(PYTEST_ARGS) \
	  -m "$(if $(FULL),gpuless or gpuless_full,gpuless)"

check: $(VENV)/installed ## Format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

schemas: $(VENV)/installed ## Write the schemas and the table of recipe fields.
	PYTHONPATH=tests $(BIN)/python -m support.write_schemas

docs: $(VENV)/installed ## Build the site into docs/_build/html; a warning is an error.
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

wheel: $(VENV)/installed ## Build the wheel into dist/.
	$(BIN)/python -m hatchling build -t wheel

image: ## Build the image n4090-kit, labelled with this commit.
	docker build -t n4090-kit --build-arg REVISION="$$(git rev-parse HEAD)" \
	  --build-arg SOURCE="$$(git remote get-url origin 2>/dev/null | sed -E 's|//[^@/]*@|//|')" .

lock: ## Write requirements/*.lock again (needs uv; CPU builds of torch found through UV_FIND_LINKS).
	@bash requirements/lock

clean: ## Remove the environment and what was built; runs, data and keys stay.
	rm -rf $(VENV) dist

# Hash-checked install; then the checkout itself, editable.
$(VENV)/installed: requirements/cpu.lock requirements/cuda.lock pyproject.toml requirements/install
	@bash requirements/install $(VENV)
	@touch $@
