# Everything starts here: `make help` lists the targets; each installs what it needs first.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUF := @bufbuild/buf@1.75.0
NPM_DIR := .cache/npm
SYSTEM_PACKAGES := dcmtk faketime orthanc orthanc-dicomweb postgresql prometheus rsyslog rsyslog-gnutls \
	rsyslog-openssl softhsm2 systemd
SYSTEM_COMMANDS := Orthanc dcmsign faketime pg_createcluster prometheus promtool rsyslogd softhsm2-util systemd-analyze
PEERS := .cache/peers
MINUTES ?= 3
SECONDS ?= 1800
KILLS ?= 200
GRADE ?= quick
OUT ?= .

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$name && break; done)

# Triton's Python stub takes the distribution's Python, not one built by hand.
PEER_PYTHON ?= $(shell for name in /usr/bin/python3.11 /usr/bin/python3 $(PYTHON); do \
	$$name -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& echo $$name && break; done)

.DEFAULT_GOAL := help
.PHONY: help install system demo test test-peers lint format fuzz stubs bench soak results results-images families denoisers hardening study drift signed phantom clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Make .venv with everything in it

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11, 3.12 or 3.13 with venv (Debian: python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Scanward and what it needs into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --editable '.[lab,dev]'
	@touch $@
	@$(BIN)/python -m pip list --format freeze 2>/dev/null | wc -l | xargs -I{} echo "installed: {} distributions"

system: ## Install what tests compare with: DCMTK, Orthanc, PostgreSQL, Prometheus, rsyslog, systemd's checker, SoftHSM for keys in hardware
	@if (for name in $(SYSTEM_COMMANDS); do command -v $$name >/dev/null || exit 1; done); then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $(SYSTEM_PACKAGES)"; \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null; \
	else \
		echo "not installed: $(SYSTEM_PACKAGES), or one of them; the tests that need it are skipped, by name." >&2; \
	fi

$(PEERS)/%/.installed: tests/peers/%.txt
	@echo "installing $* into an environment of its own"
	@$(PEER_PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install -qq --requirement $<
	@touch $@

demo: install ## Start a gateway on this machine and show it at work
	@$(BIN)/scanward demo

test: install system $(PEERS)/tritonclient/.installed ## Run every test
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-peers: install $(PEERS)/mlserver/.installed $(PEERS)/pytriton/.installed $(PEERS)/attacks/.installed ## Run the tests beside model servers and attack libraries
	@$(BIN)/python -m pytest tests/e2e tests/lab -m peers

lint: install ## Check format, style, types, imports, interface definitions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@npx --version >/dev/null 2>&1 || { echo "make: lint needs Node.js with npm, for buf" >&2; exit 2; }
	@npm exec --yes --cache $(NPM_DIR) --package $(BUF) -- buf lint
	@$(BIN)/python -m pytest -q tests/test_house.py

format: install ## Rewrite the code in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

fuzz: install ## Look for broken rules of verification (MINUTES=3)
	@$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

stubs: install ## Regenerate gateway/api from proto/ (OUT=DIR: elsewhere)
	@mkdir -p $(OUT)
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(OUT) --pyi_out=$(OUT) --grpc_python_out=$(OUT) \
		$$(find proto -name '*.proto')

bench: install system $(PEERS)/denoisers/.installed ## Measure speed beside its limits and peers; writes docs/benchmarks.md
	@$(BIN)/python benchmarks/run.py

soak: install ## Half an hour at 70 % load, then 200 kills; writes docs/soak.png (SECONDS=1800 KILLS=200)
	@$(BIN)/python benchmarks/soak.py --seconds $(SECONDS) --plot docs/soak.png
	@SCANWARD_KILLS=$(KILLS) $(BIN)/python -m pytest -q -s tests/e2e/test_kill.py
	@$(BIN)/python benchmarks/crowd.py

results: install ## Measure what the bundled detectors catch; writes docs/results-phantom.md
	@$(BIN)/python -m lab.results

results-images: install ## Train, guard and attack models on real images (hours); writes docs/results.md (GRADE=quick)
	@$(BIN)/python -m lab.image_results --grade $(GRADE)

families: install ## Leave families of attacks out of the fusion, after results-images; writes docs/results-families.md (GRADE=quick)
	@$(BIN)/python -m lab.families --grade $(GRADE)

denoisers: install ## Measure every denoiser on the bundled model; writes docs/results-denoisers.md
	@$(BIN)/python -m lab.denoiser_results

hardening: install ## Train and measure every method of hardening on real images (hours); writes docs/hardening.md
	@$(BIN)/python -m lab.hardening_results

study: install ## Measure whole studies on drawn slices; writes docs/results-study.md
	@$(BIN)/python -m lab.study

drift: install ## Measure how soon drift is told; writes docs/results-drift.md
	@$(BIN)/python -m lab.drift_results

signed: install ## Have a gateway screen 10,000 forgeries of signed scans; writes docs/results-signed.md
	@$(BIN)/python -m lab.signed_results

phantom: install ## Train the bundled model and fit its detectors anew (hours)
	@$(BIN)/python -m lab.phantom_classifier
	@$(BIN)/python -m lab.phantom_detectors

clean: ## Remove what was installed and built
	@rm -rf $(VENV) .cache build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
