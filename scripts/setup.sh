#!/usr/bin/env bash
# Installs what building, testing and the demo need, if it is not there yet: Debian/Ubuntu packages and a Python environment.
#   scripts/setup.sh          to build and test
#   scripts/setup.sh --demo   to build and for the demo, some of whose pictures are in a package of 160 MB
#   MEMSIEVE_VENV=DIR         where the environment goes (default ~/.cache/memsieve/venv)
#   MEMSIEVE_BASE_PYTHON=EXE  the Python 3.11 or newer that it is made with (default python3)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
BASE_PYTHON=${MEMSIEVE_BASE_PYTHON:-python3}
STAMP=$VENV/memsieve-stamp
LOGS=$(mktemp -d -t memsieve-setup.XXXXXX)
trap 'wait; rm -rf "$LOGS"' EXIT

PACKAGES=(
  build-essential cmake ninja-build ccache python3-venv python3-dev
  libgloo-dev libspdlog-dev catch2 libyaml-cpp-dev libhdf5-dev libboost-program-options-dev nlohmann-json3-dev
  librapidcheck-dev libpng-dev zlib1g-dev libprotobuf-dev protobuf-compiler
  fonts-noto-color-emoji unicode-data  # pictures and their names: a test reads them, and the demo
)
TEST_PACKAGES=(
  iproute2  # a test plays two machines
  clang libclang-rt-dev  # libFuzzer, for tests/fuzz
)
case ${1:-} in
  '') PACKAGES+=("${TEST_PACKAGES[@]}") ;;
  --demo) PACKAGES+=(tuxpaint-stamps-default) ;;
  *) fail "unknown option '$1'; usage: scripts/setup.sh [--demo]" ;;
esac

# Runs a command quietly; on failure one line that says what failed, and the last thing it said.
quietly() {
  local what=$1 log
  log=$(mktemp "$LOGS/XXXXXX")
  shift
  "$@" >"$log" 2>&1 ||
    fail "$what failed: $(grep -iE 'error|E:' "$log" | tail -n 1 | grep . || tail -n 1 "$log") (command: $*)"
}

install_packages() {
  local missing=() as_root=()
  command -v dpkg-query >/dev/null || fail "needs dpkg (Debian 12 or a relative); install by hand: ${PACKAGES[*]}"
  for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root or sudo to run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "setup: installing packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly "apt-get update" ${as_root[@]+"${as_root[@]}"} apt-get -q update
  quietly "installing packages" ${as_root[@]+"${as_root[@]}"} apt-get -q install -y --no-install-recommends "${missing[@]}"
}

install_python() {
  local wanted
  wanted=$(sha256sum "$ROOT/scripts/requirements.txt" | cut -d' ' -f1)
  [ "$(cat "$STAMP" 2>/dev/null)" != "$wanted" ] || return 0
  if [ ! -x "$PYTHON" ]; then
    "$BASE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      fail "'$BASE_PYTHON' is not Python 3.11 or newer; set MEMSIEVE_BASE_PYTHON"
    say "setup: making the Python environment $VENV"
    quietly "making the Python environment" "$BASE_PYTHON" -m venv "$VENV"
  fi
  say "setup: installing Python packages (a few GB the first time)"
  quietly "installing Python packages" "$PYTHON" -m pip install --no-input --disable-pip-version-check \
    -r "$ROOT/scripts/requirements.txt"
  printf '%s\n' "$wanted" >"$STAMP"
}

# Both at once where Python can make an environment already. Should one of its packages want a compiler, it has one the second time.
if [ -x "$PYTHON" ] || "$BASE_PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
  install_python 2>/dev/null &
  python=$!
  install_packages
  wait "$python" || install_python
else
  install_packages
  install_python
fi
cmake_version=$(cmake --version | sed -n '1s/[^0-9]*//p')
[ "$(printf '%s\n' 3.25 "$cmake_version" | sort -V | head -n 1)" = 3.25 ] ||
  fail "cmake $cmake_version is too old, 3.25 is needed; try: $PYTHON -m pip install cmake"
say "setup: ready ($VENV)"
