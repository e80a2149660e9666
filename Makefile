# Every recipe is a line or two; the work is in tools/.  `make` alone lists the targets.

PYTHON := .venv/bin/python
PYTEST_ARGS ?=
PARALLEL := -n 3 --dist worksteal
BENCH_ARGS ?=
DIFFERENTIAL_ARGS ?=
SOAK_ARGS ?=
CRASH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-interop demo native native-test fuzz test test-fuse test-interop lint fmt docs reference \
	check bench differential conformance crash soak soak-cache kill-soak wedged lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing and make .venv; nothing to do, nothing done
	@tools/setup.sh

setup-interop: ## the same, and the foreign programs that some tests and the bench compare with
	@tools/setup.sh --interop

demo: setup ## mount a small real image lazily, run from it, tamper with it: under a minute
	@$(PYTHON) -m tools.demo

test: setup ## all tests, three at a time; PYTEST_ARGS="-n0 -k name -x" to choose
	$(PYTHON) -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-fuse: setup ## only the tests that mount
	$(PYTHON) -m pytest -m fuse $(PYTEST_ARGS)

test-interop: setup-interop ## only the tests that run other projects' programs
	$(PYTHON) -m pytest -m interop $(PYTEST_ARGS)

native: ## compile the native driver in place, without pip
	@tools/native.sh build

native-test: ## the C core's own tests, with address and undefined-behaviour sanitizers
	@tools/native.sh test

fuzz: ## libFuzzer on the C core: TARGET=session or tree (native/fuzz/fuzz_TARGET.c), SECONDS=600
	@tools/native.sh fuzz $(or $(TARGET),session) -max_total_time=$(or $(SECONDS),60) \
		-max_len=4096 -len_control=0 -print_final_stats=1

lint: setup ## ruff and mypy --strict
	@tools/lint.sh

fmt: setup ## format the code and mend what ruff can mend
	@$(PYTHON) -m ruff check -q --fix . ; $(PYTHON) -m ruff format .

reference: setup ## write the commands' reference pages from their --help
	@$(PYTHON) -m tools.reference

docs: setup ## build the documentation site into build/site; any warning is an error
	@$(PYTHON) -m tools.reference --check
	@$(PYTHON) -m mkdocs build --strict --quiet -f tools/mkdocs.yml

check: lint native-test docs test ## what CI runs

bench: setup-interop ## lazy against pull and unpack, drivers against ext4; BENCH_ARGS="--quick"
	@$(PYTHON) -m tools.bench $(BENCH_ARGS)

differential: setup-interop ## 20,000 odd tars as containerd unpacks them; DIFFERENTIAL_ARGS="--corpora"
	@$(PYTHON) -m tools.differential $(DIFFERENTIAL_ARGS)

quirks: setup ## what registries do their own way, by report, and whether every command passes
	@$(PYTHON) -m tests.support.registries.quirks

conformance: setup ## every driver over Debian's Python image, 120 MB, against each other
	@$(PYTHON) tools/make_image.py python .bench/images/python
	LAZYFS_TEST_IMAGE=oci:$(CURDIR)/.bench/images/python:estargz \
		$(PYTHON) -m pytest -o faulthandler_timeout=600 tests/mounts/test_python_image.py $(PYTEST_ARGS)

crash: setup ## open thousands of states that a loss of power may leave; CRASH_ARGS="--states 20 evict"
	@$(PYTHON) -m tests.crash.run $(CRASH_ARGS)

wedged: setup ## what is left of a server that is killed in a wait of the kernel; holds up sync(2) for seconds
	LAZYFS_TEST_WEDGED=1 $(PYTHON) -m pytest tests/attacks/store/test_killed_while_forgetting.py $(PYTEST_ARGS)

kill-soak: setup ## kill a mount's server 200 times under load; KILLS=20 for fewer
	@$(PYTHON) -m tools.kill_soak --kills $(or $(KILLS),200)

soak: setup ## read a mount for minutes while its registry misbehaves; SOAK_ARGS="--seconds 60"
	@$(PYTHON) -m tools.soak $(SOAK_ARGS)

soak-cache: setup ## damage the cache under live mounts for minutes; SOAK_ARGS="--seconds 60"
	@$(PYTHON) -m tools.soak_cache $(SOAK_ARGS)

lock: ## write requirements.lock again; tools/lock.sh --upgrade for newer versions
	@tools/lock.sh

clean: ## remove what the other targets made, .venv too
	rm -rf .venv .bench .interop build dist *.egg-info lazyfs/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
