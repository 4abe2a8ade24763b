# Everything runs in .venv, which is made with the first command that needs it and brought up to date whenever
# pyproject.toml or constraints.txt change. A machine needs git, make and Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test torture serve bench reproduce champion ablations tables lint scan audit fuzz format constraints venv clean

help: ## Show this list
	@echo "optserve: learned optimizers as a service. Begin with: make demo"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/server.stamp ## Train a digits classifier through HTTP, against tuned Adam and SGD
	@$(BIN)/optserve demo

serve: $(VENV)/server.stamp ## Start a server on http://127.0.0.1:8000; PORT=8123 for another port
	@$(BIN)/optserve serve $(if $(PORT),--port $(PORT))

test: lint scan ## Run every check and every test
	@$(BIN)/pytest
	@$(MAKE) --no-print-directory torture

torture: $(VENV)/dev.stamp ## Kill a server under load and check every reply; N=1000 for more than 200 kills
	@$(BIN)/python -m tests.torture $(if $(N),--kills $(N))

bench: $(VENV)/bench.stamp ## Run every benchmark, into benchmarks/results/
	@$(BIN)/python -m benchmarks

reproduce: $(VENV)/dev.stamp ## Meta-train and evaluate as in the 2016 paper, and write docs/reproduction.md
	@$(BIN)/python -m benchmarks.reproduction

champion: $(VENV)/dev.stamp ## Meta-train the default optimizer again, compare every bit of it, and write the tables: two hours
	@$(BIN)/optserve metatrain recipes/hierarchical.toml --local --threads 2 --output champion/hierarchical.safetensors
	@$(BIN)/python -m benchmarks.optimizers.same champion/hierarchical.safetensors recipes/hierarchical.safetensors
	@$(MAKE) --no-print-directory tables

ablations: $(VENV)/dev.stamp ## Meta-train the default optimizer's recipe without each of its ingredients, half an hour
	@$(BIN)/python -m benchmarks.optimizers.ingredients

tables: $(VENV)/dev.stamp ## Evaluate the optimizers, and write the tables of README.md and docs/optimizers.md
	@$(BIN)/python -m benchmarks.optimizers.steps
	@$(BIN)/python -m benchmarks.optimizers

lint: $(VENV)/dev.stamp ## Check style, types and the arrows between rooms
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted; run: make format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports 2>&1) || { echo "$$report"; exit 1; }

scan: $(VENV)/dev.stamp ## Check that every package is pinned and goes with the others, and look for secrets in the files
	@$(BIN)/pip check --quiet
	@$(BIN)/python scripts/check_pins.py
	@git ls-files -z -- ':!*.png' ':!*.safetensors' \
		| xargs -0 $(BIN)/detect-secrets-hook --exclude-lines 'USER:PASS(WORD)?@HOST' --exclude-secrets '^OPTSERVE_'

audit: $(VENV)/dev.stamp ## Look the pinned packages up among the known vulnerabilities; needs the internet
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/pip install --quiet 'pip-audit>=2.9'
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

fuzz: $(VENV)/dev.stamp ## Call every route with generated input, EXAMPLES=200 times each
	@FUZZ_EXAMPLES=$(or $(EXAMPLES),200) $(BIN)/pytest tests/fuzzing

format: $(VENV)/dev.stamp ## Format the code, and mend what can be mended by itself
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

constraints: $(VENV)/dev.stamp ## Write the versions of all packages in .venv into constraints.txt
	@$(BIN)/pip freeze --exclude-editable | grep -vE '^(nvidia-|cuda-|triton==)' | sed 's/+[a-z0-9.]*$$//' \
		| LC_ALL=C sort -f > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

venv: $(VENV)/dev.stamp ## Make .venv, with everything that development needs

clean: ## Remove .venv, caches and what commands wrote
	@rm -rf $(VENV) dist demo champion reproduction .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find client server tests alembic -name __pycache__ -type d -prune -exec rm -rf {} +

# `server`, `dev` and `bench` are extras in pyproject.toml. A machine with a GPU takes the newest torch instead of the pinned one.
$(VENV)/%.stamp: pyproject.toml constraints.txt scripts/create-venv.sh
	@sh scripts/create-venv.sh $(VENV)
	@if nvidia-smi >/dev/null 2>&1; then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi \
		> $(VENV)/constraints.txt
	@echo "Installing optserve[$*] into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[$*]'
	@touch $@
