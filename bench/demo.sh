#!/usr/bin/env bash
# The main job on a scratch PostgreSQL: receive, back up, an accident, a restore to just before it, and the proof; then PostgreSQL and Redis back to
# one moment. `make demo` runs it.
# usage: bench/demo.sh path/to/walkeep
set -euo pipefail

# PostgreSQL refuses to run as root, and user postgres may not be able to read this file: it goes along as text.
if [ "$(id -u)" = 0 ]; then
  exec setpriv --reuid=postgres --regid=postgres --init-groups --reset-env bash -c "$(cat "$0")" demo "$@"
fi
cd /

walkeep=$1
pg=/usr/lib/postgresql/15/bin
[ -x $pg/postgres ] || pg=$HOME/.cache/walkeep/pg/15/bin
redis=/var/cache/walkeep/redis/7.0/bin
[ -x $redis/redis-server ] || redis=$HOME/.cache/walkeep/redis/7.0/bin
dir=$(mktemp -d /tmp/walkeep-demo.XXXXXX)
export PGHOST=$dir PGDATABASE=postgres PGUSER=postgres
PGPORT=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PGPORT
export WALKEEP_CONFIG=$dir/walkeep.toml

receiver= load= follower= cache=
writers=()
clean_up() {
  local status=$?
  set +e
  [ $status = 0 ] || { echo; echo "the demo failed; the end of its logs:"; tail -n 15 "$dir"/*.log; } >&2
  kill $receiver $load $follower $cache "${writers[@]}" 2>/dev/null
  for data in old new both; do
    [ -e "$dir/$data/postmaster.pid" ] && $pg/pg_ctl -D "$dir/$data" -m immediate -w stop >/dev/null 2>&1
  done
  wait 2>/dev/null
  rm -rf "$dir"
  [ $status != 0 ] || say "clean up" "servers stopped, $dir removed"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '  %-9s %s\n' "$1" "$2"; }
ask() { $pg/psql -XAtqc "$1"; }
number() { printf "%'d" "$1"; }
megabytes() { awk -v b="$1" 'BEGIN { printf b < 1e8 ? "%.1f MB" : "%.0f MB", b / 1e6 }'; }
seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }
bytes_under() { find "$1" -type f -printf '%s\n' 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }'; }
field() { /usr/bin/python3 -c 'import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."): value = value[int(name) if name.lstrip("-").isdigit() else name]
print(value)' "$1"; }
# What a command prints is kept in a log, and shown only if it fails.
quietly() { local log=$dir/$1.log; shift; "$@" >"$log" 2>&1; }

echo "walkeep: the main job on a scratch PostgreSQL, all of it under $dir"

# ---- a server, a repository, a receiver ---------------------------------------------------------------------------------------------
quietly initdb $pg/initdb -D "$dir/old" -U postgres -A trust --data-checksums --no-sync
cat >>"$dir/old/postgresql.conf" <<END
port = $PGPORT
listen_addresses = ''
unix_socket_directories = '$dir'
max_wal_size = 4GB
END
quietly server $pg/pg_ctl -D "$dir/old" -l "$dir/server.log" -w start
say server "PostgreSQL $(ask 'show server_version' | cut -d' ' -f1), system $(ask 'select system_identifier from pg_control_system()')"

quietly init "$walkeep" init --cluster main --connection "host=$dir port=$PGPORT user=postgres" \
  --repository "file://$dir/repository" --state-dir "$dir/state" --config "$WALKEEP_CONFIG"
"$walkeep" receive main >"$dir/receive.log" 2>&1 &
receiver=$!
for _ in $(seq 200); do
  [ "$(ask 'select count(*) from pg_stat_replication')" = 0 ] || break
  sleep 0.05
done
[ "$(ask 'select count(*) from pg_stat_replication')" = 1 ]
say receive "attached as $(ask 'select application_name from pg_stat_replication'), streaming from $(ask 'select sent_lsn from pg_stat_replication')"

# ---- a base backup -----------------------------------------------------------------------------------------------------------------
quietly load $pg/pgbench -i -s 20 -q
ask 'create table ledger (xid xid8 default pg_current_xact_id(), writer int, n int, at timestamptz default clock_timestamp())' >/dev/null
start=$EPOCHREALTIME
quietly backup "$walkeep" backup postgres main
took=$(seconds_since "$start")
list=$("$walkeep" list --json)
say backup "$(field clusters.0.backups.0.label <<<"$list"): $(megabytes "$(field clusters.0.backups.0.logical_bytes <<<"$list")") in $took s, stored as $(megabytes "$(field clusters.0.backups.0.stored_bytes <<<"$list")")"

# ---- a workload that writes down what was committed, outside the database -----------------------------------------------------------
from=$(ask 'select pg_current_wal_lsn()')
stored=$(bytes_under "$dir/repository/main/wal")
start=$EPOCHREALTIME
$pg/pgbench -n -c 4 -j 2 -T 15 >"$dir/pgbench.log" 2>&1 &
load=$!
for writer in 1 2 3; do
  for n in $(seq 200000); do
    echo "insert into ledger (writer, n) values ($writer, $n) returning xid, writer, n;"
  done | $pg/psql -XAtq -v ON_ERROR_STOP=1 >"$dir/recorded.$writer" 2>/dev/null &
  writers+=($!)
done
sleep 12

# ---- the accident, while everything runs -------------------------------------------------------------------------------------------
accident=$(ask 'begin; select pg_current_xact_id(); drop table ledger; commit')
at=$(ask "select clock_timestamp() at time zone 'UTC'")
wait "${writers[@]}" 2>/dev/null || true
writers=()
wait $load
load=
took=$(seconds_since "$start")
ask 'select pg_create_restore_point($$the end of the workload$$); select pg_switch_wal()' >/dev/null
wal=$(ask "select pg_current_wal_lsn() - '$from'")
say workload "$(number "$(sed -n 's/^number of transactions actually processed: //p' "$dir/pgbench.log")") transactions of pgbench, $(number "$(cat "$dir"/recorded.* | wc -l)") rows in table ledger, in $took s"
say accident "$at UTC: transaction $accident dropped table ledger"

# The last segment is in the repository a moment after the switch.
for _ in $(seq 200); do
  if "$walkeep" plan postgres main --target-xid "$accident" --target-exclusive --json >"$dir/plan.json" 2>"$dir/plan.log"; then break; fi
  sleep 0.1
done
plan=$(cat "$dir/plan.json")
[ "$(field reachable <<<"$plan")" = True ]
stored=$(($(bytes_under "$dir/repository/main/wal") - stored))
say wal "$(megabytes "$wal") at $(awk -v b="$wal" -v s="$took" 'BEGIN { printf "%.0f MB/s", b / s / 1e6 }'), checked, compressed and encrypted: $(megabytes "$stored") in the repository, ratio $(awk -v a="$wal" -v b="$stored" 'BEGIN { printf "%.1f", a / b }')"
say plan "just before transaction $accident is $(field target_lsn <<<"$plan"); $(field wal_segments <<<"$plan") segments to replay; last commit before it: $(field last_commit_before.xid <<<"$plan")"

# ---- the damaged server goes, the restored one takes its place ----------------------------------------------------------------------
kill $receiver
wait $receiver 2>/dev/null || true
receiver=
quietly stop $pg/pg_ctl -D "$dir/old" -m fast -w stop
start=$EPOCHREALTIME
quietly restore "$walkeep" restore postgres main --pgdata "$dir/new" --target-xid "$accident" --target-exclusive --start
took=$(seconds_since "$start")
say restore "$(megabytes "$(bytes_under "$dir/new")") restored, replayed and started in $took s"

# ---- the proof ---------------------------------------------------------------------------------------------------------------------
sort "$dir"/recorded.* >"$dir/recorded"
ask 'select xid, writer, n from ledger' | sort >"$dir/restored"
cmp "$dir/recorded" "$dir/restored" || { diff "$dir/recorded" "$dir/restored" | head >&2; exit 1; }
[ "$(ask 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)')" = t ]
say proof "ledger has $(number "$(wc -l <"$dir/restored")") rows, the same that the writers recorded as committed, no row more; the last is transaction $(sort -n "$dir/restored" | tail -n 1 | cut -d'|' -f1)"
say proof "pgbench's accounts and history agree: $(number "$(ask 'select count(*) from pgbench_history')") transactions up to that moment"

# ---- two stores, one workload with a sequence number of its own ----------------------------------------------------------------------
start_redis() { "$redis/redis-server" --port 0 --unixsocket "$dir/redis.sock" --save '' "$@" >>"$dir/redis.log" 2>&1 & cache=$!; }
cli() { "$redis/redis-cli" -s "$dir/redis.sock" "$@"; }
attached() { [ "$(ask 'select count(*) from pg_stat_replication')" = 1 ]; }
come() { for _ in $(seq 300); do "$@" >"$dir/come.log" 2>&1 && return; sleep 0.1; done; "$@"; }
mkdir "$dir/redis"
start_redis --dir "$dir/redis"
printf '\n[redis.cache]\nurl = "unix://%s/redis.sock"\n' "$dir" >>"$WALKEEP_CONFIG"
come cli ping
"$walkeep" receive main >>"$dir/receive.log" 2>&1 &
receiver=$!
"$walkeep" receive cache >"$dir/follow.log" 2>&1 &
follower=$!
come grep -q 'a snapshot to begin with is stored' "$dir/follow.log"
come attached
quietly backup "$walkeep" backup postgres main
ask 'create table pair (n int)' >/dev/null
for n in $(seq 300); do
  echo "insert into pair values ($n);"
  echo "\\! $redis/redis-cli -s $dir/redis.sock set pair $n >/dev/null"
done | quietly pair $pg/psql -XAtq -v ON_ERROR_STOP=1
sleep 0.2
moment=$(date -u +%FT%T.%6NZ)
sleep 0.2
say "two" "PostgreSQL and Redis $(cli info server | sed -n 's/^redis_version:\([0-9.]*\).*/\1/p'), written by one client: number $(ask 'select max(n) from pair') is in both"
ask 'drop table pair' >/dev/null
cli flushall >/dev/null
ask 'select pg_switch_wal()' >/dev/null
say accident "a moment after $moment: DROP TABLE in one, FLUSHALL in the other"
come "$walkeep" plan all --target-time "$moment"
kill $receiver $follower $cache
wait $receiver $follower $cache 2>/dev/null || true
receiver= follower= cache=
quietly stop $pg/pg_ctl -D "$dir/new" -m fast -w stop
start=$EPOCHREALTIME
quietly both "$walkeep" restore all --pgdata "$dir/both" --redis-dir "$dir/back" --target-time "$moment" --redis-server $redis/redis-server --start
say restore "both in $(seconds_since "$start") s; $(sed -n 's/^  skew  *\(at most [0-9.]* m*s\).*/skew between them \1/p' "$dir/both.log" | head -n 1) by their clocks"
eval "start_redis $(sed -n 's/^start it with: redis-server //p' "$dir/both.log")"
come cli ping
pair="$(ask 'select max(n) from pair') $(cli get pair)"
[ "$pair" = "300 300" ] || { echo "the two differ: $pair" >&2; exit 1; }
say proof "number ${pair% *} is the last in PostgreSQL, number ${pair#* } in Redis"
