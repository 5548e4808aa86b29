# Every command that a developer or CI runs. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build release check fmt lint docs test test-matrix demo bench fuzz stress-settle clean

CARGO ?= cargo

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: ## Install what is missing: PostgreSQL's server packages
	@deploy/setup

build: ## Build with debug assertions
	$(CARGO) build

release: ## Build for production
	$(CARGO) build --release

fmt: ## Format the code
	$(CARGO) fmt

check: ## Format, lints and documentation, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --no-deps --lib --quiet

test: setup ## Run all tests (needs PostgreSQL's server packages)
	$(CARGO) test --quiet

demo: setup ## Copy and follow a forum between two throw-away clusters (DEMO_SECONDS=20 bounds it)
	$(CARGO) run --release --quiet -- demo

clean: ## Remove what was built
	$(CARGO) clean

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := decode replication config expression

fuzz: ## Fuzz every target for FUZZ_SECONDS (60) each; needs cargo-fuzz, which is installed where missing
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --quiet --locked cargo-fuzz
	@mkdir -p fuzz/corpus/decode && cp tests/golden/*.bin fuzz/corpus/decode/
	@for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 || exit 1; \
	done
