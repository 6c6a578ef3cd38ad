#!/usr/bin/env bash
# Makes the wheel of the Python package and tries it in an empty environment outside the tree.
#   scripts/wheel.sh [FOLDER]    where the wheel goes (default build/wheel)
# The wheel fits the torch of the environment of scripts/setup.sh, which the empty one sees beside it; it needs the HDF5 and
# yaml-cpp libraries of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in -*) fail "unknown option '$1'; usage: scripts/wheel.sh [FOLDER]" ;; esac
[ -x "$PYTHON" ] || fail "no Python environment at $VENV; run scripts/setup.sh first"
OUT=$(realpath -m "${1:-$ROOT/build/wheel}")
WORK=$(mktemp -d -t memsieve-wheel.XXXXXX)
trap 'rm -rf "$WORK"' EXIT

mkdir -p "$OUT"
rm -f "$OUT"/memsieve-*.whl
# What ccache has of another build of these sources serves this one, if the compiler has the name that CMake finds.
export CC=${CC:-cc} CXX=${CXX:-c++}
export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1 CMAKE_BUILD_PARALLEL_LEVEL
export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
CMAKE_BUILD_PARALLEL_LEVEL=$(compile_jobs)
"$PYTHON" -m pip wheel --no-input --disable-pip-version-check --no-deps --wheel-dir "$OUT" "$ROOT" >"$WORK/log" 2>&1 ||
  fail "making the wheel failed: $(grep -iE 'error' "$WORK/log" | tail -n 1)"
took "the wheel"

unset PYTHONPATH  # nothing of it may help the wheel
"$PYTHON" -m venv "$WORK/venv"
site=$("$WORK/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$WORK/venv/bin/python" -m pip install --no-input --disable-pip-version-check --no-deps --no-index "$OUT"/memsieve-*.whl >"$WORK/log" 2>&1 ||
  fail "installing the wheel failed: $(tail -n 1 "$WORK/log")"
cd "$WORK"
# Alone it says what it lacks; with torch it works.
if "$WORK/venv/bin/python" -c 'from memsieve import Sieve' 2>"$WORK/log"; then fail "memsieve.Sieve worked without torch"; fi
grep -q 'ImportError: memsieve .* needs torch' "$WORK/log" || fail "without torch it should say so, but: $(tail -n 1 "$WORK/log")"
"$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$site/torch.pth"
"$WORK/venv/bin/memsieve" check
"$WORK/venv/bin/python" "$ROOT/scripts/wheel_check.py" "$ROOT"
took "trying it"
say "wheel: $(ls "$OUT"/memsieve-*.whl)"
