# SPDX-License-Identifier: MIT
#
# Every target prepares the machine itself; nothing has to be installed by hand.
# `make` alone lists the targets.

PY := .venv/bin/python
BENCHES := copy ring alloc observe scale endpoint
KERNEL ?= 6.12
SEED ?= $(shell date +%s)

.PHONY: help demo test test-one kernel install-module vmtest vmtest-pair bench tidy fuzz lint clean setup setup-test

help:
	@echo "make demo            KV caches between a prefill and a decode process, on this machine"
	@echo "make test            every check and test; ends with one total"
	@echo "make test-one T=name the C and Python tests whose name contains T"
	@echo "make bench           every benchmark, results in build/bench/, fails if a claim does not hold"
	@echo "make tidy            the rules of the house"
	@echo "make lint            mypy and ruff"
	@echo "make fuzz SEED=n     the fuzzers at full length; a seed replays the same requests"
	@echo "make kernel          dmaplane.ko, built against KERNEL=6.12 (or 6.1, debug)"
	@echo "make install-module  for this kernel (or RELEASE=r), as root; by DKMS where it is"
	@echo "make vmtest          boots KERNEL=6.12 (or 6.1, debug) and runs tests/kernel in it;"
	@echo "                     T=name takes the tests of that name"
	@echo "make vmtest-pair     boots two of them on a cable and runs tests/pair with them; T, KERNEL too"
	@echo "make clean           removes build/ and .venv/"

setup:
	@tools/setup.sh demo

setup-test:
	@tools/setup.sh test

demo: setup
	@.venv/bin/dmaplane demo --picture build/kv-demo.png

test: setup-test
	@$(PY) tools/verify.py

test-one: setup-test
	@$(if $(T),,$(error say which: make test-one T=name))$(PY) tools/verify.py --one "$(T)"

vmtest-pair: VMFLAGS += --pair
vmtest vmtest-pair:
ifeq ($(KERNEL),debug)
	@tools/setup.sh debug
	@tools/kernel/debug_kernel.sh
else
	@tools/setup.sh test
endif
	@$(PY) tools/vm/vmtest.py --kernel $(KERNEL) $(if $(T),-k "$(T)") $(VMFLAGS)

kernel: setup-test
	@$(PY) tools/kernel/build.py $(KERNEL)

install-module:
	@tools/kernel/install.py $(if $(RELEASE),--release $(RELEASE))

bench: setup
	@mkdir -p build/bench; status=0; for name in $(BENCHES); do \
		.venv/bin/dmaplane bench $$name --check --out build/bench/$$name.json || status=1; \
	done; exit $$status

tidy: setup-test
	@$(PY) tools/tidy.py

lint: setup-test
	@$(PY) tools/verify.py --stage mypy --stage ruff

fuzz: setup-test
	@$(PY) tools/verify.py --stage fuzz --stage fuzz-wire --seed $(SEED)

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
