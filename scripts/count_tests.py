#!/usr/bin/env python3
"""Counts single test cases in ctest's logs: count_tests.py LOG... prints `N passed, M failed` and exits 1 if any failed.

A ctest entry is a Catch2 program or a pytest file with many cases; both end with totals. An entry that fails without totals
(a crash, a timeout, a program that was not built) counts as one failed case.
"""
import re
import sys

ENTRY = re.compile(r"^\d+/\d+ Testing: ", re.M)
CATCH_ALL = re.compile(r"^All tests passed \(.* in (\d+) test cases?\)", re.M)
CATCH_SOME = re.compile(r"^test cases:.*$", re.M)
PYTEST = re.compile(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", re.M)


def count(entry: str) -> tuple[int, int]:
    """(passed, failed) of one ctest entry."""
    # ctest calls a program that it could not even start "passed" in its log; its command is empty.
    ok = re.search(r"^Test Passed\.$", entry, re.M) is not None and not re.search(r'^Command: ""$', entry, re.M)
    passed = failed = 0
    if match := CATCH_ALL.search(entry):
        passed = int(match[1])
    elif matches := CATCH_SOME.findall(entry):
        numbers = dict((word, int(n)) for n, word in re.findall(r"(\d+) (passed|failed)", matches[-1]))
        passed, failed = numbers.get("passed", 0), numbers.get("failed", 0)
    elif matches := PYTEST.findall(entry):
        numbers = dict((word, int(n)) for n, word in re.findall(r"(\d+) ([a-z]+)", matches[-1]))
        passed = numbers.get("passed", 0)
        failed = numbers.get("failed", 0) + numbers.get("error", 0) + numbers.get("errors", 0)
    elif ok:
        passed = 1
    if not ok and failed == 0:
        failed = 1
    return passed, failed


def main() -> int:
    total_passed = total_failed = 0
    for path in sys.argv[1:]:
        try:
            text = open(path, errors="replace").read()
        except OSError as error:
            print(f"count_tests: {error}")
            total_failed += 1
            continue
        starts = [match.start() for match in ENTRY.finditer(text)] + [len(text)]
        if len(starts) == 1:
            print(f"count_tests: {path}: no test ran")
            total_failed += 1
        for begin, end in zip(starts, starts[1:]):
            passed, failed = count(text[begin:end])
            total_passed += passed
            total_failed += failed
    print(f"{total_passed} passed, {total_failed} failed")
    return 1 if total_failed or not total_passed else 0


if __name__ == "__main__":
    sys.exit(main())
