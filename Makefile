# Needs Python 3.11 or newer and make; the rest comes into .venv. `make help` lists what there is.
PYTHON ?= python3
PIP_FLAGS ?=
CONFIG ?= dmpo.yaml
ARGS ?=

BIN := .venv/bin
READY := .venv/.alignkit-ready
ACME := .venv/.acme-ready
FAST := -m "not slow"
ifdef CI
FAST :=
endif

# more threads only fight each other: the networks are small
export OMP_NUM_THREADS ?= 2
# tests: so many processes, of one thread each
WORKERS ?= 2
# of coverage; all without any
TESTS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
# of fuzzing, for each reader
SECONDS ?= 60
export HF_HUB_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo install test test-all lint coverage fuzz mutants clean faults kill-points

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo
	@echo 'CONFIG=...  what `make demo` runs; ARGS="--trainer.max_steps 10" goes with it'
	@echo 'WORKERS=4   processes for the tests; 0 runs them in one, as debuggers want it'
	@echo 'SECONDS=600 of fuzzing, for each reader'
	@echo 'PIP_FLAGS=... goes to pip when it installs torch, such as'
	@echo '            --index-url https://download.pytorch.org/whl/cpu for the smaller one without CUDA'

demo: $(READY)  ## train the embedded default: install what is missing, then alignkit fit --config dmpo.yaml
	$(BIN)/alignkit fit --config $(CONFIG) $(ARGS)

install: $(READY)  ## make .venv with pinned versions

test: $(READY) $(ACME) lint  ## ruff, mypy, fast tests; with CI=true the slow ones, too
	$(PYTEST) $(FAST) $(ARGS)

test-all: $(READY) $(ACME) lint  ## ruff, mypy, all tests
	$(PYTEST) $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

coverage: $(READY) $(ACME)  ## branches that all tests reach, in build/coverage; TESTS=tests/unit for some
	rm -rf build/coverage && mkdir -p build/coverage
	-$(PYTEST) --cov --cov-report= $(TESTS) $(ARGS)
	$(BIN)/python -m coverage html -q
	$(BIN)/python benchmarks/branches.py $(if $(TESTS),,--out benchmarks/results)

fuzz: $(READY)  ## feed every reader of files odd ones for SECONDS each (Linux)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

mutants: $(READY)  ## change the maths and see that tests notice; writes benchmarks/results/mutants.md
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[mutants]'
	$(BIN)/python benchmarks/mutants.py --out benchmarks/results --processes $(WORKERS)

faults: $(READY) $(ACME)  ## inject every fault that is listed; writes benchmarks/results/faults.md
	$(BIN)/python benchmarks/faults.py --out benchmarks/results --processes $(WORKERS)

kill-points: $(READY)  ## kill a run 30 times and compare; writes benchmarks/results/kill_points.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill_points.py --points 30 --out benchmarks/results

clean:  ## remove .venv and what builds leave
	rm -rf .venv build dist alignkit.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch first and alone: the only one whose wheels may come from elsewhere
$(READY): pyproject.toml setup.cfg setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo '$(PYTHON) is older than 3.11: make PYTHON=python3.12 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt $(PIP_FLAGS) $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(ACME): $(READY) $(wildcard tests/third_party/acme_align/*.toml tests/third_party/acme_align/acme_align/*.py)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --force-reinstall tests/third_party/acme_align
	@touch $@
