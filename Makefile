# make demo    see the main job done on a scratch PostgreSQL, and Redis beside it
# make test    every test, against real servers that the tests start
# make bench   micro-benchmarks, and the whole beside its peers
# make fuzz    each parser of bytes from outside, FUZZ_SECONDS each (cargo-fuzz and a nightly toolchain)
# make lint    format and clippy
#
# Everything is built with --release, into one target directory outside the clone, so that RocksDB is compiled once.

CACHE := $(or $(WALKEEP_CACHE),$(if $(filter 0,$(shell id -u)),/var/cache/walkeep,$(HOME)/.cache/walkeep))
export CARGO_TARGET_DIR ?= $(CACHE)/target
FUZZ_SECONDS ?= 60

.PHONY: help demo test bench fuzz lint setup build

help:
	@sed -n 's/^# make /  make /p' Makefile

setup:
	@tests/setup.sh
	@ls $(CARGO_TARGET_DIR)/release/build/librocksdb-sys-*/output >/dev/null 2>&1 || \
	  echo "The first build compiles RocksDB: about 11 minutes on two cores. Later builds reuse it."

build: setup
	@cargo build --release --quiet

demo: build
	@bench/demo.sh $(CARGO_TARGET_DIR)/release/walkeep

# Most tests wait for servers, so more of them run at once than there are cores. Their scratch directories are in memory if there is room:
# each test makes and removes thousands of small files, in which ext4 spends more time than the test does.
TEST_THREADS ?= $(shell echo $$((3 * $$(nproc))))
ROOMY = $(shell [ -w /dev/shm ] && [ "$$(df --output=avail -k /dev/shm | tail -n 1)" -gt $$((8 << 20)) ] && \
  awk '/^MemAvailable/ { exit $$2 < 8 * 1048576 }' /proc/meminfo && echo /dev/shm)

test: setup
	TMPDIR=$(or $(TMPDIR),$(ROOMY),/tmp) RUST_TEST_THREADS=$(TEST_THREADS) cargo test --release

bench: build
	cargo bench
	bench/peers.py $(CARGO_TARGET_DIR)/release/walkeep

# The fuzzers link the RocksDB that is already built.
fuzz: build
	@cargo +nightly --version >/dev/null || { echo "cargo-fuzz needs a nightly toolchain: rustup toolchain install nightly"; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz --version 0.13.2
	@cd fuzz && for target in $$(cargo +nightly fuzz list); do mkdir -p $(CACHE)/corpus/$$target; \
	  ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR=$$(dirname $$(ls -t $(CARGO_TARGET_DIR)/release/build/librocksdb-sys-*/out/librocksdb.a | head -n 1)) \
	  CARGO_TARGET_DIR=$(CACHE)/fuzz-target cargo +nightly fuzz run $$target $(CACHE)/corpus/$$target corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

lint: setup
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
