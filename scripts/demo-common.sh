# What the demos have in common: their processes, their servers, the worker and its two kills. Sourced by scripts/demo and its
# siblings from the top of the checkout, after they have set:
#
#   demo    what the demo is called      servers          what scripts/services starts for it
#   run     the folder of this run       http             where the worker listens, as a URL
#   config  the worker's configuration   seconds          of load after the last restart
#
# A demo has a function `open_shop` that puts its application to work in the background, as process `load`.
# Several functions and variables are used by who sources this only, or by name (traps, wait_until).
# shellcheck shell=bash disable=SC2317,SC2034,SC2154

# shellcheck source=scripts/rust.sh
source scripts/rust.sh

python=/usr/bin/python3
binary=${CARGO_TARGET_DIR:-target}/release/cutover
keep=${KEEP:-}
kill_at_ratio=0.25 # of the copy
stream_seconds=6   # between the copy's end and the second kill
patience_seconds=300

began=$SECONDS
say() { printf '\n== %3d s  %s\n' $((SECONDS - began)) "$*"; }
die() { printf '%s: %s\n' "$demo" "$*" >&2; exit 1; }

# ---- processes: only those that this script started, each known by pid and start time ------------------------------

start_time() { awk '{print $22}' "/proc/$1/stat" 2>/dev/null || true; }
remember() { echo "$1 $2 $(start_time "$2")" >>"$run/pids"; }
pid_of() { # prints the newest pid of that name, if it still is that process
  local name pid started found=
  [[ -e $run/pids ]] || return 1
  while read -r name pid started; do
    if [[ $name == "$1" && -n $started && $(start_time "$pid") == "$started" ]]; then found=$pid; fi
  done <"$run/pids"
  [[ -n $found ]] && echo "$found"
}
end() { # name, signal: ends it and waits; killed after fifteen seconds
  local pid i
  pid=$(pid_of "$1") || return 0
  kill "-${2:-TERM}" "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 150; i++)); do
    pid_of "$1" >/dev/null || return 0
    # Our own child stays a zombie until it is waited for.
    [[ $(awk '{print $3}' "/proc/$pid/stat" 2>/dev/null) != Z ]] || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}
end_all() { for name in load lag worker watch; do end "$name"; done; }
background() { # name, log, command…: in a session of its own, so that Ctrl-C reaches it through at_exit only
  local name=$1 log=$2
  shift 2
  setsid "$@" </dev/null >>"$log" 2>&1 &
  remember "$name" $!
}

services() { scripts/services --instance demo "$@"; }

stop_everything() { # its servers
  end_all
  services stop "$@"
}

at_exit() {
  local code=$?
  trap - EXIT INT TERM
  set +e
  if [[ -n $keep && $code -eq 0 ]]; then exit 0; fi
  end_all
  [[ -z ${servers_started:-} ]] || services stop "${servers[@]}" 2>/dev/null
  exit "$code"
}

# ---- the worker ---------------------------------------------------------------------------------------------------

start_worker() { background worker "$run/worker.log" "$binary" -c "$config" run; }

show_progress() {
  "$python" demo/watch.py "$binary" -c "$config" </dev/null &
  remember watch $!
}

alive() { pid_of worker >/dev/null && [[ $(awk '{print $3}' "/proc/$(pid_of worker)/stat") != Z ]]; }

progress() { # the share of the copy that is done, as /metrics has it
  curl -fsS --max-time 1 "$http/metrics" 2>/dev/null | awk '/^cutover_snapshot_progress_ratio/ {print $2}' | head -n 1
}
copied_to() {
  copied=$(progress)
  awk -v have="$copied" -v want="$1" 'BEGIN {exit !(have != "" && have + 0 >= want)}'
}

status_is() { # a Python expression over the object that status --json prints
  "$binary" -c "$config" status --json 2>>"$run/status.log" |
    "$python" -c 'import json, sys; s = json.load(sys.stdin); sys.exit(0 if eval(sys.argv[1], {}, s) else 1)' "$1" 2>/dev/null
}

wait_until() { # what, pause, command…
  local what=$1 pause=$2 deadline=$((SECONDS + patience_seconds))
  shift 2
  until "$@"; do
    alive || die "the worker ended by itself while waiting for $what: its log is $run/worker.log"
    if ((SECONDS >= deadline)); then
      "$binary" -c "$config" status >&2 || true
      die "waited $patience_seconds s in vain for $what: the worker's log is $run/worker.log"
    fi
    sleep "$pause"
  done
}

kill_worker() {
  local pid
  pid=$(pid_of worker)
  say "kill -9 $pid: the worker, $1"
  kill -KILL "$pid"
  wait "$pid" 2>/dev/null || true
}

event() { printf '{"at": %s, "event": "%s"}\n' "$(date +%s.%N)" "$1" >>"$run/lag.jsonl"; }

# What cutover says of both databases; it shares no code with the demos' own comparisons.
prove() {
  say "cutover verify, which does the same for any pipeline"
  "$binary" -c "$config" verify
}

# ---- the scenes that are the same -------------------------------------------------------------------------------

# Begins a run: nothing of an earlier one is left, and this one ends with what it started.
begin() {
  [[ -x $python ]] || scripts/services packages python3
  # What an earlier run left, if it was told to keep it.
  end_all
  rm -rf "$run"
  mkdir -p "$run"
  trap at_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  if (exec 3<>"/dev/tcp/127.0.0.1/$CUTOVER_HTTP_PORT") 2>/dev/null; then
    die "port $CUTOVER_HTTP_PORT is held by something else: set CUTOVER_HTTP_PORT to a free one"
  fi
}

# From the first connection to a steady stream, with a kill in the copy and one in the stream.
move() {
  open_shop
  say "cutover check, cutover run"
  "$binary" -c "$config" check || die "cutover check found a problem"
  show_progress
  start_worker
  wait_until "a quarter of the copy" 0.05 copied_to "$kill_at_ratio"
  kill_worker "in the middle of the copy ($(awk -v done="$copied" 'BEGIN {printf "%d %%", done * 100}') of it is done)"
  start_worker
  wait_until "the end of the copy" 0.3 status_is "phase == 'following'"
  say "the copy is complete; changes go on streaming"
  sleep "$stream_seconds"
  kill_worker "in the middle of the stream"
  start_worker
  wait_until "a lag under two seconds" 0.3 status_is "lag_seconds is not None and lag_seconds < 2"
  event steady
  say "$seconds seconds more of load"
  sleep "$seconds"
  pid_of load >/dev/null || die "the load ended by itself: $(tail -n 1 "$run/load.log")"
}
