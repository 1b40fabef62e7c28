# What the benchmarks share: their servers, fresh databases, the binary, and the end. Each sets `servers` (what it starts, and
# stops at its end) before it sources this.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # the scripts use what is set here, and set what is used

# shellcheck source=scripts/rust.sh
source scripts/rust.sh

python=/usr/bin/python3
binary=${BENCH_BINARY:-${CARGO_TARGET_DIR:-target}/release/cutover}
export BENCH_PASSWORD=bench BENCH_HTTP_PORT=${BENCH_HTTP_PORT:-23571}
name=$(basename "$0")
measuring=

die() { printf '%s: %s\n' "$name" "$*" >&2; exit 1; }
services() { scripts/services --instance bench "$@"; }
field() { services status "$1" | grep -oE "$2=[0-9]+" | cut -d= -f2; }

# Named by the trap.
# shellcheck disable=SC2317
at_exit() {
  local code=$?
  trap - EXIT INT TERM
  set +e
  # The worker is a child of the Python program, which ends it.
  if [[ -n $measuring ]]; then kill -TERM "$measuring" 2>/dev/null; wait "$measuring"; fi
  services stop "${servers[@]}"
  exit "$code"
}

# Installs what is missing, builds, and starts the servers anew where they keep what a run before has left.
prepare() {
  if (exec 3<>"/dev/tcp/127.0.0.1/$BENCH_HTTP_PORT") 2>/dev/null; then
    die "port $BENCH_HTTP_PORT is held by something else: set BENCH_HTTP_PORT to a free one"
  fi
  scripts/services install build
  scripts/services packages python3-pymysql python3-psycopg2
  [[ -n ${BENCH_BINARY-} ]] || cargo build --release --quiet
  trap at_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  local server
  for server in "${servers[@]}"; do
    case $server in kafka | dynamodb) services wipe "$server" >/dev/null ;; esac
  done
  services start "${servers[@]}" >/dev/null
  rm -rf bench-run/log
  mkdir -p bench-run
  : >bench-run/worker.log
}

# An administrator's session at the PostgreSQL server of this name.
postgres() { psql -X -q -o /dev/null -v ON_ERROR_STOP=1 "postgresql://cutover_admin:admin@127.0.0.1:$(field "$1" port)/postgres"; }

# An empty database `bench` at the MySQL server of this name, with the source's table.
mysql_source() {
  mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -P "$(field "$1" port)" -u cutover_admin -padmin <<SQL
DROP DATABASE IF EXISTS bench;
RESET MASTER;
CREATE DATABASE bench CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS 'bench'@'%' IDENTIFIED WITH mysql_native_password BY '$BENCH_PASSWORD';
GRANT ALL ON bench.* TO 'bench'@'%';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'bench'@'%';
USE bench;
SOURCE bench/source.sql;
SQL
}

# An empty database `bench` at the PostgreSQL server of this name, with the tables of this file, if any.
postgres_database() {
  postgres "$1" <<SQL
SET client_min_messages = warning;
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'cutover\_bench\_%';
DROP DATABASE IF EXISTS bench WITH (FORCE);
DROP ROLE IF EXISTS bench;
CREATE ROLE bench LOGIN REPLICATION PASSWORD '$BENCH_PASSWORD';
CREATE DATABASE bench OWNER bench;
SQL
  [[ -z ${2-} ]] ||
    psql -X -q -v ON_ERROR_STOP=1 "postgresql://bench:$BENCH_PASSWORD@127.0.0.1:$(field "$1" port)/bench" -f "$2"
}

# Runs a program of bench/ with this binary.
measure() {
  "$python" "$1" --binary "$binary" "${@:2}" &
  measuring=$!
  wait "$measuring"
  measuring=
}
