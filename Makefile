# Everything here runs in .venv, which makes itself. `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help demo lab watch test check slow bench kind fix clean
# Three files at a time, each process with a cluster of its own: most of a test is waiting for what is far away
PYTEST := .venv/bin/python -m pytest --numprocesses 3 --dist loadfile

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: run ## The whole story in this terminal, in under two minutes
	@.venv/bin/pghc demo

lab: all ## JupyterLab on the lessons with the cluster running behind it; Ctrl-C stops both
	@.venv/bin/pghc lab

watch: all ## The regions alive, on a page of this machine; Ctrl-C stops page and cluster
	@.venv/bin/pghc watch

test: check ## Checks and all tests but the slow ones, on real servers: about twenty minutes
	$(PYTEST) -m "not slow and not kind"

check: all ## ruff, mypy --strict, import-linter, and that lessons show the outputs of their cells
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python scripts/notebooks.py --check

slow: all ## The long tests: randomised faults, large histories
	$(PYTEST) -m "slow and not kind"

bench: all ## The writers measured, beside the raw limits of this machine
	@.venv/bin/pghc bench
	@.venv/bin/python -m benchmarks.api

kind: all ## A Kubernetes cluster of the same regions (needs Docker, kind, kubectl), and JupyterLab on it
	@cluster/up.sh
	@.venv/bin/pghc lab --backend kind

fix: all ## Apply ruff's fixes
	.venv/bin/ruff check --fix .

clean: ## Stop your cluster and delete its data, .venv, and what tools left behind
	@if [ -x .venv/bin/pghc ]; then .venv/bin/pghc down --purge || true; fi
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: run all
all: ## Make .venv with all packages; the targets that need it do so by themselves
	@scripts/venv.sh all

run: # what the demo needs
	@scripts/venv.sh run
