# Every command that a developer or CI runs. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build release check deny fmt docs test test-roles test-failover test-matrix demo fuzz-schema fuzz-startup bench bench-snapshot bench-verify fuzz golden simulate soak stress-settle clean
.PHONY: setup-tools package deb deploy-check

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

check: ## Format, lints, documentation and the lists of mutants, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --no-deps --lib --quiet
	$(CARGO) run --quiet --manifest-path tests/mutants/Cargo.toml --target-dir target/mutants/tool -- check

setup-tools: ## Get what some tests run next to the servers: Prometheus, Chromium, libfaketime
	@deploy/setup-tools

# The live tests wait for servers most of the time: three for two processors.
TEST_THREADS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 4 ? 8 : n * 3 / 2 + n % 2)))
test: export RUST_TEST_THREADS ?= $(TEST_THREADS)

test: setup setup-tools ## Run the tests (installs PostgreSQL's server packages where missing)
	$(CARGO) test --quiet -- --skip failover::
	HEADWATER_TEST_ROLES=least $(CARGO) test --quiet --test live -- $(ROLES_TESTS)
	HEADWATER_TEST_ROLES=origin $(CARGO) test --quiet --test live -- $(ROLES_TESTS)

.PHONY: test-long
test-long: export RUST_TEST_THREADS ?= $(TEST_THREADS)
test-long: setup setup-tools ## Run the tests that make test leaves out, since each takes long
	$(CARGO) test --quiet --test live -- --ignored --skip failover::
	HEADWATER_TEST_ROLES=least $(CARGO) test --quiet --test live -- --ignored $(ROLES_TESTS)
	HEADWATER_TEST_ROLES=origin $(CARGO) test --quiet --test live -- --ignored $(ROLES_TESTS)

# What make test runs under least-privilege roles, too.
ROLES_TESTS := basics:: check:: sequences:: teardown:: truncate:: verify::

test-roles: setup setup-tools ## Run the live tests under the roles of docs/roles.md, with session_replication_role and without
	HEADWATER_TEST_ROLES=least $(CARGO) test --quiet --test live -- --include-ignored --skip failover::
	HEADWATER_TEST_ROLES=origin $(CARGO) test --quiet --test live -- --include-ignored --skip failover::

test-failover: setup ## Promoted standbys and decoding from a standby (servers 16 to 18 from npm)
	$(CARGO) test --quiet --test live -- --include-ignored failover::

demo: setup ## Copy and follow a forum between two throw-away clusters (DEMO_SECONDS=20 bounds it)
	$(CARGO) run --release --quiet -- demo

deny: ## Check the dependencies' licences and sources; needs cargo-deny, which is installed where missing
	@command -v cargo-deny >/dev/null || $(CARGO) install --quiet --locked cargo-deny
	cargo deny --log-level error check licenses bans sources

docs: ## Write the pages that are printed from the code
	HEADWATER_WRITE_DOCS=1 $(CARGO) test --quiet --test docs -- printed_from

.PHONY: docs-site
docs-site: ## Build the documents as a book in target/docs-site/book and check its links; mdBook is installed where missing
	@deploy/docs-site

.PHONY: screenshots
screenshots: setup setup-tools ## Take the pictures of the README into docs/images: the demo's page, light and dark, and a terminal
	HEADWATER_SCREENSHOTS=$(CURDIR)/docs/images $(CARGO) test --release --quiet --test live -- --ignored screenshots::

package: release ## Make what a package installs with the binary: manual pages and completions, in target/package
	@mkdir -p target/package/completions
	@target/release/headwater man target/package/man
	@target/release/headwater completions bash > target/package/completions/headwater.bash
	@target/release/headwater completions zsh > target/package/completions/_headwater
	@target/release/headwater completions fish > target/package/completions/headwater.fish

deb: package ## Build the Debian package; needs cargo-deb, which is installed where missing
	@command -v cargo-deb >/dev/null || $(CARGO) install --quiet --locked cargo-deb
	@# Stripped here and not in the profile: benchmarks and profilers want the names.
	cargo deb --no-build --strip

deploy-check: ## Check the unit, the alerts, the manifests and the compose file with their own tools and schemas
	@deploy/check

clean: ## Remove what was built
	$(CARGO) clean

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := frame decode replication config expression expression_tokens record letter

fuzz: ## Fuzz every target for FUZZ_SECONDS (60) each; needs libclang, and cargo-fuzz, which is installed where missing
	@compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || [ -n "$$LIBCLANG_PATH" ] || \
		{ echo "libclang is missing, by which PostgreSQL's own lexer is built. Install it as root: apt-get install libclang-dev" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --quiet --locked cargo-fuzz
	@mkdir -p fuzz/corpus/decode && cp tests/golden/*.bin fuzz/corpus/decode/
	@for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 || exit 1; \
	done

test-matrix: setup ## Run the live tests with servers 14 to 18 on either side (servers from npm; about an hour)
	@tests/matrix

SETTLE_ROUNDS ?= 300

stress-settle: setup ## Look for rows lost by unsettled snapshots, SETTLE_ROUNDS (300) rounds on every major
	@HEADWATER_ROUNDS=$(SETTLE_ROUNDS) PAIRS="14:15 15:15 16:15 17:15 18:15" tests/matrix settle

BENCH_OUT ?= docs/benchmarks.md

bench: setup ## Measure drains, latency, CPU, WAL and memory side by side with native replication (BENCH_SCALE=0.05 BENCH_ITEMS=B1 for a look)
	@BENCH_OUT=$(if $(BENCH_SCALE)$(BENCH_ITEMS)$(BENCH_PEERS)$(BENCH_ROUNDS),,$(CURDIR)/$(BENCH_OUT)) $(CARGO) bench --quiet --bench drain

bench-snapshot: setup ## Measure the first copy and the resync side by side with native, pgcopydb and the limit (BENCH_SCALE=0.05 for a look)
	@BENCH_OUT=$(if $(BENCH_SCALE)$(BENCH_PEERS)$(BENCH_ROUNDS),,$(CURDIR)/$(BENCH_OUT)) $(CARGO) bench --quiet --bench snapshot

bench-verify: setup ## Measure what verify compares in a second, next to COPY of the same tables (BENCH_SCALE=0.05 for a look)
	@BENCH_OUT=$(if $(BENCH_SCALE)$(BENCH_ROUNDS),,$(CURDIR)/$(BENCH_OUT)) $(CARGO) bench --quiet --bench verify

bench-hot: ## Measure what one core decodes, folds and writes in a second (criterion; no servers)
	$(CARGO) bench --quiet --bench hot

golden: ## Record what the servers 14 to 18 send, for tests/wire.rs
	@for major in 14 15 16 17 18; do \
		HEADWATER_RECORD=$(CURDIR)/tests/golden HEADWATER_TEST_SOURCE_BIN=$$(tests/servers $$major) \
			$(CARGO) test --quiet --test live -- --include-ignored golden || exit 1; \
	done

SOAK_SECONDS ?= 1800

soak: setup ## Every fault by chance under load for SOAK_SECONDS (1800); HEADWATER_SEED replays their order
	SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --release --quiet --test live -- --include-ignored faults:: --nocapture

.PHONY: soak-resync
ROUNDS ?= 1000
LANES ?= 4

soak-resync: setup ## Every way of a resync by chance under load, ROUNDS (1000) rounds in LANES (4), each compared exactly; HEADWATER_SEED replays their order
	ROUNDS=$(ROUNDS) LANES=$(LANES) $(CARGO) test --release --quiet --test live -- --include-ignored resync:: --nocapture

.PHONY: large
LARGE_ROWS ?= 5000000

large: setup ## Apply one transaction of LARGE_ROWS (5,000,000) rows, streamed and at its commit, and a row of 500 MB; memory is bounded
	@HEADWATER_LARGE_ROWS=$(LARGE_ROWS) HEADWATER_LARGE_ROW_MB=500 $(CARGO) test --release --quiet --test live -- --include-ignored large --nocapture --test-threads 1

RECONNECTS ?= 1000

.PHONY: reconnects
reconnects: setup ## Cut both links RECONNECTS (1,000) times and look at descriptors, memory and sessions
	HEADWATER_RECONNECTS=$(RECONNECTS) $(CARGO) test --release --quiet --test live -- --include-ignored reconnects:: --nocapture

STARVED_TABLES ?= 1000
STARVED_ROW_MB ?= 200

.PHONY: starved
starved: setup ## Keep the lead with a tenth of a core, STARVED_TABLES (1,000) tables and a row of STARVED_ROW_MB (200) MB
	HEADWATER_STARVED_TABLES=$(STARVED_TABLES) HEADWATER_STARVED_ROW_MB=$(STARVED_ROW_MB) \
		$(CARGO) test --release --quiet --test live -- --include-ignored starved:: --nocapture --test-threads 1

TAKEOVERS ?= 4

.PHONY: takeovers
takeovers: setup ## Kill, freeze, cut off and stop the leader TAKEOVERS (4) times each and tell how long the destination stands still
	HEADWATER_TAKEOVERS=$(TAKEOVERS) $(CARGO) test --release --quiet --test live -- --include-ignored takeover:: --nocapture

SCHEMA_SECONDS ?= 1800

fuzz-schema: setup ## Random ALTER TABLE and ALTER TYPE among random writes for SCHEMA_SECONDS (1800); HEADWATER_SEED replays an episode
	SCHEMA_SECONDS=$(SCHEMA_SECONDS) $(CARGO) test --quiet --test live -- --include-ignored schemas:: --nocapture

STARTUP_SECONDS ?= 600

fuzz-startup: setup ## What check says against what a start does, by chance, for STARTUP_SECONDS (600); HEADWATER_SEED replays a draw
	STARTUP_SECONDS=$(STARTUP_SECONDS) $(CARGO) test --quiet --test live -- --include-ignored startups:: --nocapture

SEEDS ?= 20

.PHONY: seeds
seeds: setup ## Run each randomized live test with SEEDS (20) fresh seeds; what fails is printed with its seed
	tests/seeds $(SEEDS)

simulate: ## Run 100,000 schedules of the simulated replication loop
	HEADWATER_SCHEDULES=100000 $(CARGO) test --release --quiet --test simulation -- --nocapture

MUTANTS ?= 200
MUTANTS_SEED ?= 1

.PHONY: mutants
mutants: setup ## Change MUTANTS (200) places of the code that keeps rows exact, one at a time, and see a test fail; MUTANTS_SEED draws them (hours)
	$(CARGO) run --quiet --manifest-path tests/mutants/Cargo.toml --target-dir target/mutants/tool -- $(MUTANTS) $(MUTANTS_SEED)
