#!/usr/bin/env bash
# Configures and builds: scripts/build.sh [PRESET [TARGET...]], by default everything of preset 'release'.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
preset=${1:-release}
shift || true
cd "$ROOT"
[ -x "$PYTHON" ] || fail "no Python environment at $VENV; run scripts/setup.sh first"
# ccache then finds what another checkout of the same sources has compiled.
export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1
# And looks through precompiled headers; the files that stand in them are compared by what they hold.
export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
cmake --preset "$preset" -DMEMSIEVE_PYTHON="$PYTHON" >/dev/null || fail "configuring preset '$preset' failed"
cmake --build --preset "$preset" -j "$(compile_jobs)" ${1:+--target "$@"}
