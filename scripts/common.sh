# Sourced by the other scripts: where things are, and how many jobs this machine can take.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${MEMSIEVE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/memsieve/venv}
PYTHON=$VENV/bin/python
# The package's sources: its commands need no compiled module.
export PATH="$VENV/bin:$PATH" MEMSIEVE_VENV="$VENV" PYTHONPATH="$ROOT/python${PYTHONPATH:+:$PYTHONPATH}"

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# A value as YAML's single-quoted style has it, for --set key=VALUE: a path may hold " #" or ": ".
quoted() {
  local quote="'"
  printf '%s' "$quote${1//$quote/$quote$quote}$quote"
}

# took PART [MORE]: prints the seconds since the last call, or since the script began.
LAST_SECONDS=0
took() { say "$(basename "$0" .sh): $1 took $((SECONDS - LAST_SECONDS)) s${2:-}"; LAST_SECONDS=$SECONDS; }

# Cores this process may use: the affinity mask, or the container's quota if that is less.
cores() {
  local n quota period
  n=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # which would obey both
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
    quota=$(((quota + period - 1) / period))
    [ "$quota" -ge "$n" ] || n=$quota
  fi
  [ "$n" -ge 1 ] || n=1
  say "$n"
}

# Processes among which the demo's batch of 32 is divided: one for each GPU, or two that share the cores.
processes() {
  local gpus n=2
  gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || echo 0)
  if [ "$gpus" -gt 0 ]; then
    n=1
    while [ $((n * 2)) -le "$gpus" ] && [ "$n" -lt 32 ]; do n=$((n * 2)); done
  fi
  say "$n"
}

# Compile jobs: one per core, but a file that includes torch's headers needs up to 2 GiB.
compile_jobs() {
  local by_memory by_cores limit
  by_memory=$(awk '/^MemAvailable:/ {print int($2 / 1048576 / 2)}' /proc/meminfo)
  if read -r limit 2>/dev/null </sys/fs/cgroup/memory.max && [ "$limit" != max ]; then
    limit=$((limit / 2147483648))
    [ "$limit" -ge "${by_memory:-0}" ] || by_memory=$limit
  fi
  by_cores=$(cores)
  [ "${by_memory:-1}" -ge 1 ] || by_memory=1
  say $((by_cores < by_memory ? by_cores : by_memory))
}
