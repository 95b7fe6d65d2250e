# The two commands of a fresh machine: `make demo` (set-up, then the main job for real) and `make test`.
SHELL := /bin/bash
VENV ?= .venv
BUILD ?= build
JOBS ?= $(shell nproc)
export PILOT_VENV := $(VENV)

.PHONY: help setup test-setup demo test interop interop-full sim lossy test-c test-python test-asan fuzz nat-report lint wheel clean bench bench-setup bench-quick bench-smoke bench-check bench-outages bench-relay

help:
	@echo "make demo         set up, then run a rendezvous and two agents on loopback and show them talk"
	@echo "make test         set up, then run all tests"
	@echo "make setup        system packages (when root), virtual environment, build"
	@echo "make test-c       C unit tests             make test-asan  the same under ASan and UBSan"
	@echo "make test-python  Python tests             make fuzz       each fuzz target for FUZZ_SECONDS (10)"
	@echo "make sim          SIM_SEEDS (1000) random networks on virtual time, from seed SIM_FIRST (1), SIM_MINUTES (1) of trouble each"
	@echo "make interop      the published programs with ours, every operation, role and path; interop-full: also 200 MB files"
	@echo "make lossy        files to and from a published daemon over a lossy line, against two published ones (LOSSY_ARGS)"
	@echo "make nat-report   connections through every pair of NATs, measured (root, half an hour; ROUNDS, CELLS, PARTS)"
	@echo "make lint         ruff and mypy            make wheel      sdist and wheel, tried outside the tree"
	@echo "make bench        the benchmark suite (root, 20 minutes), results in bench/results; make bench-quick: 3 minutes"
	@echo "make bench-check  the quick suite against the committed ratios to the reference loop (bench/baseline.json)"
	@echo "make clean        remove build products and the virtual environment"

setup:
	@packaging/setup.sh run

demo: setup
	@packaging/demo.sh

test: test-c test-python

test-setup:
	@packaging/setup.sh test

test-c: test-setup
	@cmake -S . -B $(BUILD)/c -DPILOT_BUILD_TESTS=ON -DPILOT_WERROR=ON >/dev/null
	@cmake --build $(BUILD)/c -j $(JOBS)
	ctest --test-dir $(BUILD)/c --output-on-failure

test-asan: test-setup
	@cmake -S . -B $(BUILD)/asan -DPILOT_BUILD_TESTS=ON -DPILOT_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
	@cmake --build $(BUILD)/asan -j $(JOBS)
	ctest --test-dir $(BUILD)/asan --output-on-failure

fuzz: test-setup
	csrc/fuzz/run.sh $(BUILD)/fuzz $(or $(FUZZ_SECONDS),10)

# pytest runs against the installed package, not the source tree: what passes here is what users get. It runs in another folder, so that
# the programs the tests start do not find the tree either.
test-python: test-setup
	@mkdir -p $(BUILD)/tests
	cd $(BUILD)/tests && "$(abspath $(VENV))/bin/pytest" --import-mode=importlib -q -c "$(CURDIR)/pyproject.toml" --rootdir "$(CURDIR)" \
	  "$(CURDIR)/tests" -m "$(or $(PYTEST_MARKS),not interop)" $(PYTEST_ARGS)

# The published programs (fetched from the package index) with ours in every role, on every path; prints a table. Needs root.
interop: test-setup
	@mkdir -p $(BUILD)/tests
	cd $(BUILD)/tests && "$(abspath $(VENV))/bin/pytest" --import-mode=importlib -q -c "$(CURDIR)/pyproject.toml" --rootdir "$(CURDIR)" \
	  "$(CURDIR)/tests/interop" -m interop $(PYTEST_ARGS)

# The same with the cells that take minutes: files of 200 MB, and what else the folder has beside the matrix.
interop-full:
	@PILOT_INTEROP=full $(MAKE) interop

# How long agents notice a beacon's restart, and a network that lets no UDP out. Root; some minutes.
bench-outages: test-setup
	$(VENV)/bin/python bench/net/outages.py restart
	$(VENV)/bin/python bench/net/outages.py blocked

# Ten flows through one relay: sum, fairness, and what the relay adds to a round trip. Root; one minute.
bench-relay: test-setup
	$(VENV)/bin/python bench/net/flows.py

# Needs root. The table goes to the terminal, to report.md and, with every single value, to results.json.
nat-report: test-setup
	@mkdir -p $(BUILD)/nat-report
	cd $(BUILD)/nat-report && "$(abspath $(VENV))/bin/python" "$(CURDIR)/tests/nat/report.py" --out "$(abspath $(BUILD))/nat-report" \
	  --rounds "$(or $(ROUNDS),20)" --cells "$(CELLS)" --parts "$(PARTS)"

lossy: test-setup
	$(VENV)/bin/python tests/interop/lossy.py $(LOSSY_ARGS)

# Thousands of simulated networks; a seed that breaks an invariant prints its trace and the command that repeats it.
sim: test-setup
	@mkdir -p $(BUILD)/tests
	cd $(BUILD)/tests && "$(abspath $(VENV))/bin/python" "$(CURDIR)/tests/sim/run.py" \
	  --seeds $(or $(SIM_SEEDS),1000) --first $(or $(SIM_FIRST),1) --minutes $(or $(SIM_MINUTES),1)

lint: test-setup
	$(VENV)/bin/ruff check pilot tests bench
	$(VENV)/bin/mypy

bench-setup:
	@packaging/setup.sh bench

bench: bench-setup
	$(VENV)/bin/python bench/run.py $(BENCH_ARGS)

bench-quick: bench-setup
	$(VENV)/bin/python bench/run.py --quick $(BENCH_ARGS)

bench-check: bench-setup
	$(VENV)/bin/python bench/run.py --quick --baseline check $(BENCH_ARGS)

# Does the suite still run? Seconds; no figure decides.
bench-smoke: bench-setup
	@mkdir -p $(BUILD)
	$(VENV)/bin/python bench/run.py --smoke --out $(BUILD)/bench-smoke >$(BUILD)/bench-smoke.md

wheel: test-setup
	packaging/check_wheel.sh $(BUILD)/dist

clean:
	rm -rf $(BUILD) $(VENV) dist
