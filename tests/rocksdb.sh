#!/usr/bin/env bash
# Builds RocksDB from the sources that the locked librocksdb-sys crate brings, once, into the cache folder.
#
#   tests/rocksdb.sh build    compiles librocksdb.a unless it exists; one line for each unit
#   tests/rocksdb.sh path     prints the folder that holds it
#   tests/rocksdb.sh env      prints the two variables that make cargo link it:  eval "$(tests/rocksdb.sh env)"
#
# The crate's own build script compiles 342 files, and each parses the same headers: 34 minutes on two cores. Compiled as unity files
# (many sources included into one), the same code takes a fraction of that. RocksDB tests this way of building too (`make unity_test`).
# Defines and warnings are those of the crate's build script for Linux with its feature `zstd`.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ]; then cache=${WALKEEP_CACHE:-/var/cache/walkeep}; else cache=${WALKEEP_CACHE:-$HOME/.cache/walkeep}; fi
cxx=${CXX:-c++}
sources_per_unit=20

# No -march: like the crate's build without RUSTFLAGS, the library runs on every x86-64 and every 64-bit ARM.
flags=(
  -std=c++20 -O2 -fPIC -ffunction-sections -fdata-sections -w -include cstdint
  -DNDEBUG=1 -DZSTD=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION
  -DOS_LINUX -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT
  -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT
)

locked_version() { sed -n "/^name = \"$1\"/{n;s/^version = \"\(.*\)\"/\1/p}" Cargo.lock; }

# The name holds everything that decides what the library is.
library_folder() {
  local key
  key=$({ "$cxx" --version | head -n 1; uname -m; locked_version zstd-sys; echo "$sources_per_unit ${flags[*]}"; } | sha256sum | cut -c1-12)
  echo "$cache/rocksdb/$(locked_version librocksdb-sys)-$key"
}

# The crates' sources are wherever cargo keeps them.
crate_folder() {
  cargo metadata --locked --format-version 1 2>/dev/null | python3 -c '
import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"
}

# As many compilers as there are cores, but each may need 1.5 GiB.
compilers() {
  local by_memory
  by_memory=$(awk '/^MemAvailable/ { print int($2 / 1572864) }' /proc/meminfo)
  [ "$by_memory" -ge 1 ] || by_memory=1
  [ "$by_memory" -lt "$(nproc)" ] && echo "$by_memory" || nproc
}

# Sources of one folder stay together: RocksDB keeps names apart within a folder, so that they can be one unit.
write_units() {
  local crate=$1 work=$2
  grep -v '^util/build_version.cc$' "$crate/rocksdb_lib_sources.txt" | awk -v size="$sources_per_unit" -v crate="$crate" -v work="$work" '
    NF == 0 { next }
    { split($1, part, "/"); folder = part[1] }
    folder != last || count == size { unit++; count = 0; last = folder; file = sprintf("%s/unit-%02d.cc", work, unit) }
    { count++; printf "#include \"%s/rocksdb/%s\"\n", crate, $1 > file }'
  cp "$crate/build_version.cc" "$work/unit-00.cc"
}

compile_unit() {
  local unit=$1
  "$CXX_PROGRAM" "${@:2}" -c "$unit" -o "${unit%.cc}.o" || { echo "RocksDB: cannot compile $unit" >&2; exit 255; }
  (
    flock 8
    echo "setup: RocksDB $(find "${unit%/*}" -name '*.o' -size +0 | wc -l) of $(find "${unit%/*}" -name '*.cc' | wc -l)"
  ) 8>"${unit%/*}/lock"
}

build() {
  local folder work crate zstd
  [ "$(uname -s)" = Linux ] || { echo "setup: no prebuilt RocksDB for $(uname -s); cargo compiles it, which takes half an hour"; return; }
  folder=$(library_folder)
  [ -f "$folder/librocksdb.a" ] && return
  mkdir -p "$cache/rocksdb"
  exec 9>"$cache/rocksdb/lock"
  flock 9
  [ -f "$folder/librocksdb.a" ] && return
  echo "setup: fetching the crates"
  cargo fetch --locked --quiet
  crate=$(crate_folder librocksdb-sys)
  zstd=$(crate_folder zstd-sys)/zstd/lib
  work=$folder.new
  rm -rf "$work"
  mkdir -p "$work"
  write_units "$crate" "$work"
  echo "setup: building RocksDB $(locked_version librocksdb-sys) with $(compilers) compilers"
  export -f compile_unit
  export CXX_PROGRAM=$cxx
  ls -S "$work"/*.cc | xargs -P "$(compilers)" -I{} bash -c 'compile_unit "$@"' _ {} "${flags[@]}" \
    -I"$crate/rocksdb/include" -I"$crate/rocksdb" -I"$crate" -I"$zstd"
  ar crs "$work/librocksdb.a" "$work"/*.o
  rm -f "$work"/*.o "$work"/*.cc "$work/lock"
  mv "$work" "$folder"
}

case ${1:-} in
  build) build ;;
  path) library_folder ;;
  env) [ "$(uname -s)" != Linux ] || echo "export ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR=$(library_folder)" ;;
  *) sed -n 's/^#   //p' "$0"; exit 2 ;;
esac
