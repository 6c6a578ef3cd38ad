"""Makes the runs of the detection benchmark that are not made yet, measures them, and writes docs/detection.md from all results.

    scripts/bench.sh detection [--quick] [--scenario S] [--rule R] [--seed N] [--pictures N] [--plan | --table | --base B] [--again]
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from memsieve.reports import program
from memsieve.reports.files import replace_file
from memsieve.reports.program import InputError

from . import bases, book, line, plan, rules, runs
from .scenarios import BASES, BATCH

ROOT = Path(__file__).resolve().parents[2]
PAGE, PLOT = Path("docs/detection.md"), Path("docs/images/detection.svg")
QUICK_ROUNDS = 2


def whole(least):
    def parse(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} up")
        return int(text)
    return parse


class OneLine(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def options_of(words):
    parser = OneLine(prog="bench.sh detection", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
                     allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="two scenarios with few steps, to see that everything works")
    parser.add_argument("--scenario", help="this scenario alone")
    parser.add_argument("--rule", help="this rule alone")
    parser.add_argument("--seed", type=whole(0), help="this seed of noise, timesteps and order alone")
    parser.add_argument("--pictures", type=whole(0), help="draw the repeated and ordinary pictures by this number, instead of those "
                        "of the table; results stay beside the runs")
    parser.add_argument("--again", action="store_true", help="make what is asked for again, though it is done: for new code of a rule")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="tell which runs are done and how long the others take; makes nothing")
    what.add_argument("--table", action="store_true", help="write the page from the results that there are; makes no run")
    what.add_argument("--base", choices=sorted(BASES), help="train the base model of a scenario that needs its own, to models/")
    parser.add_argument("--processes", type=whole(1), default=2, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=whole(1), default=2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def place_of(options, root):
    folder = Path("runs/detection-quick" if options.quick else "runs/detection")
    results = folder / "results" if options.quick else Path("bench/detection/results")
    # With more, a process would have fewer rows than a block, which is part of the rule.
    processes = min(options.processes, BATCH // rules.BLOCK)
    return runs.Place(root, folder, results, root / "build/release/trainer/memsieve-train", processes,
                      max(1, options.cores // processes))


def split_missing(jobs):
    """Jobs whose rule this tree has; the others are named once for each rule."""
    there, missing = [], {}
    for job in jobs:
        try:
            there.append(job) if job.config else None
        except rules.RuleMissing as error:
            missing[job.rule] = str(error)
    for rule, words in missing.items():
        print(f"detection: rule {rule}: {words}", flush=True)
    return there


def show_plan(jobs, rounds):
    left = 0.0
    for job in jobs:
        state, minutes = job.state, plan.minutes(job, rounds)
        left += 0 if state == "done" else minutes
        print(f"{job.name:<36} {state:<8} {minutes:5.1f} min")
    every = sum(plan.minutes(job, rounds) for job in jobs)
    print(f"{len(jobs)} runs, about {every:.0f} min on two cores; {sum(job.state == 'done' for job in jobs)} done, "
          f"about {left:.0f} min left")


def make(job, studio, rounds):
    """Makes and measures one run, as far as it is not done."""
    from . import measures
    if job.scenario.recipe is not None and studio.make(job.scenario.recipe, job.place.root / job.data):
        print(f"detection: {job.data}: made", flush=True)
    runs.train(job)
    result = measures.measure(job, rounds)
    job.result.parent.mkdir(parents=True, exist_ok=True)
    replace_file(job.result, (json.dumps(result, indent=None, separators=(",", ":")) + "\n").encode())
    return result


def write_page(place, page, plot):
    from . import plot as drawing
    from . import table
    found = book.read(place.root / place.results)
    text = table.fill((place.root / PAGE).read_text(), found)
    for path, content in ((plot, drawing.svg(found)), (page, text.encode())):
        (place.root / path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(place.root / path, content)
    print(f"detection: {page}, {plot}", flush=True)


def need_base(job):
    base = job.scenario.base
    if base and not (job.place.root / base / "config.json").exists():
        name = next((name for name in BASES if base.endswith(name)), None)
        raise InputError(f"{base}: no such model: make it with scripts/bench.sh detection --base {name}")


def run(options, root=ROOT):
    place = place_of(options, root)
    if options.base:
        return bases.make(place, options.base)
    jobs = split_missing(plan.jobs(place, options))
    rounds = QUICK_ROUNDS if options.quick else 10
    if options.plan:
        return show_plan(jobs, rounds)
    if not options.table:
        from .pictures import Studio
        studio = Studio()
        for number, job in enumerate(jobs, 1):
            if options.again:
                job.forget()
            if job.state == "done":
                continue
            need_base(job)
            print(f"detection: {job.name}: {job.state}, {number} of {len(jobs)}", flush=True)
            print(f"detection: {job.name}: {line.of(make(job, studio, rounds), job.plain.stored())}", flush=True)
    if options.quick:
        write_page(place, place.runs / "detection.md", place.runs / "detection.svg")
    else:
        write_page(place, PAGE, PLOT)


def interrupted(*_):
    raise KeyboardInterrupt


def main(words=None, root=ROOT):
    options = options_of(words)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        return program.run("bench.sh detection", lambda given: run(given, root), options)
    except KeyboardInterrupt:
        print("bench.sh detection: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
