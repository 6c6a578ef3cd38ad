#!/usr/bin/env bash
# Builds and runs every test; the last line is `N passed, M failed`, counting single test cases.
#   scripts/test.sh           unit, collective and Python tests, then the unit tests of lib/ under AddressSanitizer + UBSan
#   scripts/test.sh --quick   without the sanitizer run
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
sanitize=yes
case ${1:-} in
  '') ;;
  --quick) sanitize=no ;;
  *) fail "unknown option '$1'; usage: scripts/test.sh [--quick]" ;;
esac
# Whatever goes wrong before the tests run, the last line still says so in numbers.
counted=no
trap '[ $counted = yes ] || say "0 passed, 1 failed"' EXIT

# One thread per process: the collective tests start several processes on few cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
logs=()
run_preset() {
  # One more than there are cores: tests that start processes wait for them.
  ctest --preset "$1" -j "${MEMSIEVE_TEST_JOBS:-$(($(cores) + 1))}" || true
  logs+=("build/$1/Testing/Temporary/LastTest.log")
}

scripts/setup.sh
took "set-up"
scripts/build.sh release
took "build"
rm -f build/release/Testing/Temporary/LastTest.log build/asan/Testing/Temporary/LastTest.log
run_preset release
took "tests"
if [ $sanitize = yes ]; then
  say "The unit tests of lib/ and filters/ under AddressSanitizer and UndefinedBehaviorSanitizer:"
  if scripts/build.sh asan test_lib; then
    took "sanitizer build"
    run_preset asan
    took "sanitizer tests"
  else
    logs+=("build/asan/Testing/Temporary/LastTest.log")
  fi
fi
say "test: everything took $SECONDS s"
counted=yes
exec "$PYTHON" scripts/count_tests.py "${logs[@]}"
