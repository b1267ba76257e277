# FetchBox: every way to build, check, test and run it. Needs Python ≥ 3.11 with venv, cargo, make and a C compiler; fetches the rest by itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
TEST := .venv-test
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# The versions this tree was tested with; a newer one comes in by `make constraints`, not by chance.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTEST_ARGS ?=

RUST := Cargo.toml Cargo.lock $(shell find rust proto -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.proto' \))
PY := $(shell find python -type f \( -name '*.py' -o -name '*.pyi' -o -name 'py.typed' -o -path '*/static/*' \))
CODE := python tests docker $(wildcard benches examples)
# The crate that knows Python links only inside an interpreter: its tests are tests/boundary.
# Tests are built with the points at which they may kill a process (rust/failpoint); what `install` builds has none.
CARGO_TEST := --workspace --exclude fetchbox-py --locked --features fetchbox-engine/failpoints,fetchbox-hub/failpoints
DOCKER ?= docker
DOCKER_COMPOSE ?= $(shell $(DOCKER) compose version >/dev/null 2>&1 && echo $(DOCKER) compose || echo docker-compose)
IMAGE ?= fetchbox:dev
BASE ?= debian:bookworm-slim
EXTRAS ?=
# Further options of `docker build`.
IMAGE_OPTIONS ?=
# The image that docker/.env names; an own one is not built here. DEV_ALSO: further compose files.
DEV_IMAGE = $(shell sed -n 's/^FETCHBOX_IMAGE=//p' docker/.env 2>/dev/null)
DEV_ALSO ?=

.PHONY: help install test test-rust test-python fuzz check check-rust check-python fmt fmt-check bench run proto docs constraints image dev-up dev-down clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# ---- environments -------------------------------------------------------------------------------------------------------------

define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "FetchBox needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -m venv $(1) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
endef

$(VENV)/pyvenv.cfg:
	$(call make_venv,$(VENV))

$(TEST)/pyvenv.cfg:
	$(call make_venv,$(TEST))

# A wheel, not an editable install: what runs here is what a user would get.
$(VENV)/.installed: pyproject.toml constraints.txt $(RUST) $(PY) | $(VENV)/pyvenv.cfg
	$(VENV)/bin/python -m pip install --quiet 'maturin>=1.16,<2'
	rm -rf $(VENV)/wheel
	$(VENV)/bin/maturin build --release --interpreter $(VENV)/bin/python --out $(VENV)/wheel
	$(VENV)/bin/python -m pip install --quiet "$$(echo $(VENV)/wheel/*.whl)[parquet,curl,iggy]"
	$(VENV)/bin/python -m pip install --quiet --force-reinstall --no-deps $(VENV)/wheel/*.whl
	touch $@

$(TEST)/.deps: pyproject.toml constraints.txt | $(TEST)/pyvenv.cfg
	$(TEST)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(TEST)/requirements.txt
	$(TEST)/bin/python -m pip install --quiet -r $(TEST)/requirements.txt
	touch $@

# Development profile, editable.
$(TEST)/.extension: pyproject.toml $(RUST) $(TEST)/.deps
	VIRTUAL_ENV=$(CURDIR)/$(TEST) $(TEST)/bin/maturin develop --quiet --features failpoints
	touch $@

install: $(VENV)/.installed ## .venv with the release build; .venv/bin/fetchbox works

# ---- tests and checks ---------------------------------------------------------------------------------------------------------

test: test-rust test-python ## every test, Rust and Python

test-rust: ## the Rust tests
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run $(CARGO_TEST); else cargo test $(CARGO_TEST) --lib --bins --tests; fi
	cargo test $(CARGO_TEST) --doc --quiet

test-python: $(TEST)/.extension ## the Python tests; PYTEST_ARGS="-k name" to choose
	$(TEST)/bin/python -m pytest $(PYTEST_ARGS)

FUZZ_TARGETS ?= urls response_heads content_range retry_after checksum_hints manifests
FUZZ_RUNS ?= 100000

# RUSTC_BOOTSTRAP lets the installed compiler instrument; the sanitizers need a nightly, and there is hardly any unsafe code for them to judge.
fuzz: ## libFuzzer over what strangers' bytes go through; FUZZ_RUNS=10000000, FUZZ_TARGETS="urls manifests"
	@command -v cargo-fuzz >/dev/null || { echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz" >&2; exit 1; }
	cp Cargo.lock rust/fuzz/Cargo.lock
	for target in $(FUZZ_TARGETS); do \
	    mkdir -p rust/fuzz/corpus/$$target; \
	    RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(CURDIR)/rust/fuzz/target cargo fuzz run --fuzz-dir rust/fuzz --sanitizer none $$target \
	        rust/fuzz/corpus/$$target rust/fuzz/seeds/$$target -- -runs=$(FUZZ_RUNS) -max_len=4096; \
	done

check: fmt-check check-rust check-python ## format, lints, types, stubs, imports

fmt-check: $(TEST)/.deps
	cargo fmt --all --check
	$(TEST)/bin/ruff format --check --quiet $(CODE) || { $(TEST)/bin/ruff format --diff $(CODE); exit 1; }

check-rust: $(TEST)/.deps
	PYO3_PYTHON=$(CURDIR)/$(TEST)/bin/python cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	cargo clippy --package fetchbox-failpoint --features enabled --all-targets --locked --quiet -- -D warnings

check-python: $(TEST)/.extension
	$(TEST)/bin/ruff check --quiet $(CODE)
	$(TEST)/bin/mypy
	cd $(TEST) && bin/stubtest fetchbox._core --concise --mypy-config-file ../pyproject.toml
	PYTHONPATH=python $(TEST)/bin/lint-imports --no-logo

fmt: $(TEST)/.deps ## format everything
	cargo fmt --all
	$(TEST)/bin/ruff check --quiet --fix-only $(CODE)
	$(TEST)/bin/ruff format --quiet $(CODE)

# ---- running it ---------------------------------------------------------------------------------------------------------------

run: install ## the main job for real: service, origin, sample manifest, progress, what was stored where
	$(VENV)/bin/python -m fetchbox.cli.demo examples/manifest.json

bench: install ## the peers' comparison
	$(VENV)/bin/python benches/peers.py --install

image: ## the container image IMAGE, on BASE
	DOCKER_BUILDKIT=1 $(DOCKER) build --file docker/Dockerfile --tag $(IMAGE) --build-arg BASE=$(BASE) $(if $(EXTRAS),--build-arg EXTRAS=$(EXTRAS)) $(IMAGE_OPTIONS) \
	    --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)" --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || true)" \
	    --build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" .

dev-up: $(if $(filter-out fetchbox:dev,$(DEV_IMAGE)),,image) ## the compose stack: a fleet with Iggy, an S3 store, Prometheus and Grafana
	$(PYTHON) docker/dev.py up --compose "$(DOCKER_COMPOSE)" $(addprefix --also ,$(DEV_ALSO))

dev-down: ## stop the compose stack
	$(PYTHON) docker/dev.py down --compose "$(DOCKER_COMPOSE)" $(addprefix --also ,$(DEV_ALSO))

# ---- generated files ----------------------------------------------------------------------------------------------------------

proto: $(TEST)/.deps ## generate the Python messages (the Rust ones are made by the build)
	$(TEST)/bin/python -m grpc_tools.protoc -I fetchbox/proto=proto --python_out=python --pyi_out=python fetchbox/proto/jobs.proto

docs: $(TEST)/.deps ## make docs/configuration.md and config/fetchbox.example.toml from the models
	PYTHONPATH=python $(TEST)/bin/python -m fetchbox.config.reference

constraints: ## take the newest versions that pyproject.toml allows into constraints.txt
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > .venv-constraints/requirements.txt
	PIP_CONSTRAINT= .venv-constraints/bin/python -m pip install --quiet -r .venv-constraints/requirements.txt
	{ echo '# Made by `make constraints`: the versions that this tree was tested with.'; .venv-constraints/bin/python -m pip freeze; } > constraints.txt
	rm -rf .venv-constraints

clean: ## remove everything that was built
	rm -rf $(VENV) $(TEST) .venv-bench dist target rust/fuzz/target rust/fuzz/corpus fetchbox-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/fetchbox/_core*.so
