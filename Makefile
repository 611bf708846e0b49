# Two commands do all the set-up: `make run` and `make test`.
SHELL := /bin/bash
ENV := . scripts/env.sh &&
DATA ?= data

.PHONY: run test demo bench build checked deb setup setup-tests fmt lint unit e2e soak

# The main job: six nodes, a gateway, an S3 address to use.
run: build
	@$(ENV) exec "$$CARGO_TARGET_DIR/release/holdfast" up --data "$(DATA)"

# The whole story: upload, lose two of six nodes, read back, challenge, repair.
demo: build
	@$(ENV) exec "$$CARGO_TARGET_DIR/release/holdfast" demo

# Every check. One profile (`checked`) for lints, unit tests and end-to-end tests, and always the whole workspace: a part
# alone asks dependencies for fewer features, and they would build again for each part.
test: setup-tests fmt lint unit e2e

bench: build
	@$(ENV) cargo build --locked --release -p holdfast-bench
	@$(ENV) "$$CARGO_TARGET_DIR/release/holdfast-bench" run --binary "$$CARGO_TARGET_DIR/release/holdfast" $(BENCH_ARGS)

build: setup
	@$(ENV) cargo build --locked --release -p holdfast

# A Debian package with the node's systemd unit, under target/debian of the build cache.
deb: build
	@$(ENV) packaging/build-deb.sh "$$CARGO_TARGET_DIR/release/holdfast" "$$CARGO_TARGET_DIR/debian"

checked: setup
	@$(ENV) cargo build --locked --profile checked --workspace --bins --tests

setup:
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --tests

fmt:
	@$(ENV) cargo fmt --all --check

lint: setup
	@$(ENV) cargo clippy --locked --profile checked --workspace --all-targets -- -D warnings

unit: setup-tests
	@$(ENV) cargo nextest run --locked --cargo-profile checked --workspace -E 'not package(holdfast-tests)'

e2e: setup-tests checked
	@$(ENV) cargo nextest run --locked --cargo-profile checked --workspace -E 'package(holdfast-tests)'

# What takes longer than a test may: a node killed 200 times under load, and many more lives of a store whose power goes.
soak: setup-tests checked
	@$(ENV) HOLDFAST_ROUNDS=200 cargo nextest run --locked --cargo-profile checked --workspace -E 'binary(killed)'
	@$(ENV) HOLDFAST_ROUNDS=8 cargo nextest run --locked --cargo-profile checked --workspace -E 'binary(failover)'
	@$(ENV) HOLDFAST_CASES=300 cargo nextest run --locked --cargo-profile checked --workspace -E 'package(holdfast-storage-node) & test(faults::)'
