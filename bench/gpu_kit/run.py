#!/usr/bin/env python3
"""Runs the kit that scripts/gpu_kit.sh makes: unpacks it, then tries one part after another, each in a process and with a time limit
of its own. results.json is rewritten after every part. Needs nothing but Python's own library; run.sh starts it."""
import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOTAL = 480             # seconds for everything
MARK = "results: "      # how a part's figures begin in its output
NEEDS_GPU = 77          # exit code of a part that can do nothing here


def library_path(work):
    """For our programs: torch's libraries as the Python that runs this finds them, then the kit's."""
    torch = importlib.util.find_spec("torch")
    if torch is None:
        raise SystemExit(f"run.py: {sys.executable} holds no torch; name another Python with --python")
    folder = Path(torch.origin).parent
    nvidia = sorted(path for path in (folder.parent / "nvidia").glob("*/lib"))
    return ":".join(str(path) for path in [folder / "lib", *nvidia, work / "lib"])


def python_path(work):
    """Our own package's sources, and the kit's packages that this Python lacks."""
    missing = [folder for folder in sorted((work / "packages").iterdir()) if importlib.util.find_spec(folder.name) is None]
    return [str(work / "python"), *map(str, missing)]


def environment(work, quick):
    variables = dict(os.environ)
    variables["MEMSIEVE_KIT_LIBRARIES"] = library_path(work)
    paths = [*python_path(work), *filter(None, [variables.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = ":".join(paths)
    variables.setdefault("OMP_NUM_THREADS", "1" if quick else str(len(os.sched_getaffinity(0))))
    variables["PYTHONUNBUFFERED"] = "1"
    return variables


def end(process):
    """The part and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def figures_of(lines):
    figures = {}
    for line in lines:
        if line.startswith(MARK):
            figures |= json.loads(line[len(MARK):])
    return figures


def run_part(name, seconds, args, work, log):
    """One entry of results.json."""
    command = [sys.executable, str(work / "parts.py"), name, *(["--quick"] if args.quick else [])]
    began = time.monotonic()
    status = None
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=work, env=environment(work, args.quick),
                                   start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            status = {0: "ok", NEEDS_GPU: "needs a GPU"}.get(code, "failed")
        except subprocess.TimeoutExpired:
            status = "timeout"
        finally:
            end(process)
        output.seek(0)
        lines = output.read().splitlines()
    log.write("\n".join([f"== {name}: {status}", *lines, ""]))
    log.flush()
    entry = {"name": name, "status": status, "seconds": round(time.monotonic() - began, 1), "figures": figures_of(lines)}
    said = [line for line in lines if line.strip() and not line.startswith(MARK)]
    if status != "ok":
        entry["said"] = said[-1].strip() if said else ("nothing" if status != "timeout" else f"nothing within {seconds:.0f} s")
    return entry


def write(path, results):
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def unpack(work):
    with tarfile.open(HERE / "kit.tar.xz") as archive:
        archive.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # which 3.11.4 brought
    return json.loads((work / "kit.json").read_text())


def run_all(args, work, out):
    began = time.monotonic()
    kit = unpack(work)
    limits = kit.pop("parts")
    names = args.parts.split(",") if args.parts else list(limits)
    unknown = [name for name in names if name not in limits]
    if unknown:
        raise SystemExit(f"run.py: no part '{unknown[0]}'; there are {', '.join(limits)}")
    results = {"kit": kit, "quick": args.quick, "unpacking_s": round(time.monotonic() - began, 1), "parts": [], "finished": False}
    with open(out / "log.txt", "w") as log:
        for name in names:
            left = TOTAL - (time.monotonic() - began)
            if left < 5:
                entry = {"name": name, "status": "timeout", "seconds": 0, "figures": {}, "said": f"the {TOTAL} s were over before it"}
            else:
                entry = run_part(name, min(limits[name], left), args, work, log)
            print(f"{entry['name']}: {entry['status']}, {entry['seconds']} s" + (f" ({entry['said']})" if "said" in entry else ""),
                  flush=True)
            results["parts"].append(entry)
            results["seconds"] = round(time.monotonic() - began, 1)
            write(out / "results.json", results)
    results["finished"] = True
    write(out / "results.json", results)
    print(f"{out / 'results.json'}: {results['seconds']} s in all")
    return 1 if any(entry["status"] in ("failed", "timeout") for entry in results["parts"]) else 0


def main():
    parser = argparse.ArgumentParser(prog="run.sh", description="Tries memsieve on this machine.")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="every part shortened, for a CPU")
    parser.add_argument("--parts", help="only these, separated by commas")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="memsieve-kit."))
    try:
        return run_all(args, work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
