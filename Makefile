# The commands of the house. `scripts/services` installs and starts the real servers; it says what it installs.

SERVICES := scripts/services
INSTANCES := test demo bench ci chaos
SERVICES_DIR := $(or $(CUTOVER_SERVICES_DIR),.services)

MINUTES := 10

# Where rustup keeps cargo, as scripts/rust.sh has it: `make test` may have installed it a moment ago.
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export PATH := $(if $(findstring :$(CARGO_BIN):,:$(PATH):),$(PATH),$(CARGO_BIN):$(PATH))

.PHONY: help demo demo-merge demo-dynamodb test simulate chaos bench-smoke bench-verify bench-tables bench-postgres bench-mysql-target bench-dynamodb bench-scale fuzz check check-deploy clean-services

help:
	@echo "make demo            the main job on real servers, from nothing (KEEP=1 leaves it running, LOG=kafka runs a broker)"
	@echo "make demo-merge      seven tables of one PostgreSQL become four of another, live"
	@echo "make demo-dynamodb   a bookshop moves from DynamoDB to typed tables, the same way"
	@echo "make test            all tests, against real servers, which stay up for the next run"
	@echo "make simulate        a million seeds of the simulator (SEEDS=from..to), one run with its history (RUN=seed=…), or runs like it (both)"
	@echo "make chaos           real servers under faults of every kind for MINUTES=10, then every row compared (SEED=n)"
	@echo "make bench-smoke     throughput and latency beside their floors, in one run"
	@echo "make bench-verify    what a verify costs, and whether it is right while everything is written"
	@echo "make bench-tables    how long many small tables take"
	@echo "make bench-postgres  throughput from PostgreSQL to PostgreSQL"
	@echo "make bench-mysql-target  throughput from PostgreSQL to MySQL, beside plain INSERTs"
	@echo "make bench-dynamodb  throughput from DynamoDB Local to PostgreSQL"
	@echo "make bench-scale     throughput with 1, 2 and 4 partitions and 1 and 2 processes (ROUND_TRIP_MS=n: a target that is far away)"
	@echo "make fuzz            the decoders against arbitrary bytes, MINUTES=10 for each target"
	@echo "make check           format, lints, dependency policy"
	@echo "make check-deploy    alert rules and their tests; with CHECK_DEPLOY_GO=1 compose and Kubernetes files too"
	@echo "make clean-services  stop and delete the servers of this checkout, data and binaries"

demo:
	LOG=$(LOG) scripts/demo $(if $(KEEP),--keep)

demo-merge:
	scripts/demo-merge

demo-dynamodb:
	scripts/demo-dynamodb $(if $(KEEP),--keep)

test:
	$(SERVICES) install build
	$(SERVICES) start all
	RUST_TEST_THREADS=4 cargo test --locked

simulate:
	$(SERVICES) install build
	$(if $(SEEDS),CUTOVER_SIMULATE_SEEDS=$(SEEDS)) $(if $(RUN),CUTOVER_SIMULATE_RUN=$(RUN)) \
		cargo test --locked --profile simulate --test it -- --ignored --nocapture simulator::as_many_seeds_as_asked

chaos:
	scripts/chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench-smoke:
	scripts/bench-smoke

bench-verify:
	scripts/bench-verify

bench-tables:
	scripts/bench-tables

bench-postgres:
	scripts/bench-postgres

bench-mysql-target:
	scripts/bench-mysql-target

bench-dynamodb:
	scripts/bench-dynamodb

bench-scale:
	scripts/bench-scale $(if $(ROUND_TRIP_MS),--round-trip-ms $(ROUND_TRIP_MS))

fuzz:
	scripts/fuzz --minutes $(MINUTES) $(TARGET)

check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo deny --locked check bans licenses sources

check-deploy:
	scripts/check-deploy

clean-services:
	for instance in $(INSTANCES); do $(SERVICES) --instance $$instance wipe || exit 1; done
	rm -rf $(addprefix $(SERVICES_DIR)/,dist tls tls.new locks openssl.log $(INSTANCES))
