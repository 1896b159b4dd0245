# make demo    see the main job done on a scratch PostgreSQL, and Redis beside it
# make test    every test, against real servers that the tests start
# make bench   micro-benchmarks, and the whole beside its peers
# make fuzz    each parser of bytes from outside, FUZZ_SECONDS each (cargo-fuzz and a nightly toolchain)
# make lint    format and clippy
#
# Everything is built with --release, into one target directory outside the clone. RocksDB is compiled once, by `make setup`, and linked from
# the cache folder (tests/rocksdb.sh).

CACHE := $(or $(WALKEEP_CACHE),$(if $(filter 0,$(shell id -u)),/var/cache/walkeep,$(HOME)/.cache/walkeep))
export CARGO_TARGET_DIR ?= $(CACHE)/target
FUZZ_SECONDS ?= 60
# Asked in the recipes, after `setup`: before that there may be no compiler to ask.
cargo = eval "$$(tests/rocksdb.sh env)" && cargo

.PHONY: help demo test bench fuzz lint setup build

help:
	@sed -n 's/^# make /  make /p' Makefile

setup:
	@tests/setup.sh

build: setup
	@$(cargo) build --release

demo: build
	@bench/demo.sh $(CARGO_TARGET_DIR)/release/walkeep

# Most tests wait for servers, so more of them run at once than there are cores. Their scratch directories are in memory if there is room:
# each test makes and removes thousands of small files, in which ext4 spends more time than the test does.
TEST_THREADS ?= $(shell echo $$(($$(nproc) + 1)))
ROOMY = $(shell [ -w /dev/shm ] && [ "$$(df --output=avail -k /dev/shm | tail -n 1)" -gt $$((8 << 20)) ] && \
  awk '/^MemAvailable/ { exit $$2 < 8 * 1048576 }' /proc/meminfo && echo /dev/shm)

test: setup
	@$(cargo) test --release --no-run
	@export TMPDIR=$(or $(TMPDIR),$(ROOMY),/tmp) RUST_TEST_THREADS=$(TEST_THREADS) && $(cargo) test --release

bench: build
	@$(cargo) bench
	bench/peers.py $(CARGO_TARGET_DIR)/release/walkeep

fuzz: build
	@cargo +nightly --version >/dev/null || { echo "cargo-fuzz needs a nightly toolchain: rustup toolchain install nightly"; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz --version 0.13.2
	@eval "$$(tests/rocksdb.sh env)"; cd fuzz && for target in $$(cargo +nightly fuzz list); do mkdir -p $(CACHE)/corpus/$$target; \
	  CARGO_TARGET_DIR=$(CACHE)/fuzz-target cargo +nightly fuzz run $$target $(CACHE)/corpus/$$target corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

lint: setup
	cargo fmt --check
	@$(cargo) clippy --release --all-targets -- -D warnings
