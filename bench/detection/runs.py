"""One run of the benchmark: what is trained, where it lies, and how it is trained to its end or goes on after it was stopped."""

import ctypes
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml
from memsieve.reports.files import replace_file
from memsieve.reports.program import InputError

from . import rules
from .scenarios import BATCH, Scenario

MEASURES = 1          # raise it where a figure is worked out in another way: all are then worked out again
CHECKPOINTS = 110     # steps; what a run that is killed loses at most


@dataclass(frozen=True)
class Place:
    """Where things are, relative to `root`, and on how many processes a run is trained."""

    root: Path
    runs: Path
    results: Path
    trainer: Path
    processes: int = 2
    threads: int = 1


def set_dotted(config, settings):
    for key, value in settings.items():
        *path, last = key.split(".")
        target = config
        for name in path:
            target = target.setdefault(name, {})
        target[last] = value


@dataclass(frozen=True)
class Job:
    """A scenario under a rule with a seed."""

    place: Place
    scenario: Scenario
    rule: str
    seed: int
    suffix: str = ""       # of the scenario's folders, where its pictures are not those of the table

    @property
    def name(self):
        return f"{self.scenario.name}{self.suffix}/{self.rule}/seed-{self.seed}"

    @property
    def folder(self):
        return self.place.root / self.place.runs / self.scenario_folder / self.rule.replace(":", "_") / f"seed-{self.seed}"

    @property
    def scenario_folder(self):
        return self.scenario.name + self.suffix

    @property
    def run(self):
        return self.folder / "run"

    @property
    def result(self):
        """Where the figures go: results of the table are part of the tree, others lie beside the runs."""
        name = f"{self.scenario_folder}-{self.rule.replace(':', '_')}-seed-{self.seed}.json"
        of_table = self.scenario.reported and not self.suffix
        return self.place.root / (self.place.results if of_table else self.place.runs / "results") / name

    @property
    def plain(self):
        """The run without a filter that this one is compared with."""
        return replace(self, scenario=replace(self.scenario, name=self.scenario.of_plain), rule="off")

    @property
    def data(self):
        """Folder of the data set, relative to the root."""
        return Path("data/demo") if self.scenario.recipe is None else Path("data/detection") / (self.scenario.data + self.suffix)

    @cached_property
    def config(self):
        """The whole configuration of the trainer."""
        root, scenario = self.place.root, self.scenario
        config = yaml.safe_load((root / "configs" / "demo.yaml").read_text())
        config = {key: value for key, value in config.items() if key != "sieve"}
        set_dotted(config, {"validation.every": 110, "sampling.every": scenario.draw_every,
                            "sampling.num_images_per_prompt": scenario.pictures_per_prompt})
        set_dotted(config, deepcopy(scenario.settings))
        data = {name: str(self.data / file) for name, file in (("train", "mix.h5"), ("held_out", "held_out.h5"),
                                                              ("validation", "validation.h5"), ("prompts", "prompts.h5"))}
        config |= {"seed": self.seed, "output_dir": str(self.run.relative_to(root)), "max_train_steps": scenario.steps,
                   "train_batch_size": BATCH // self.place.processes, "checkpointing_steps": CHECKPOINTS,
                   "checkpoints_total_limit": 1, "data": config["data"] | data}
        if scenario.base:
            config["model"] = {"pretrained": scenario.base}
        sieve = rules.sieve_of(root, self.rule, scenario)
        return config if sieve is None else config | {"sieve": sieve}

    @cached_property
    def fingerprint(self):
        """Of all that decides the figures; where and on how many processes it is trained does not."""
        config = {key: value for key, value in self.config.items() if key not in ("output_dir", "train_batch_size")}
        recipe = self.scenario.recipe and asdict(self.scenario.recipe)
        what = {"config": config, "recipe": recipe, "parts": self.scenario.parts, "measures": MEASURES}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def stored(self):
        """The result as it lies on disk, of whatever configuration; None = none."""
        try:
            return json.loads(self.result.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{self.result}: cannot be read as JSON: {error}") from None

    @property
    def state(self):
        """done, stale (measured under another configuration), trained (to be measured), begun, or to do."""
        stored = self.stored()
        if stored is not None and stored.get("fingerprint") == self.fingerprint:
            return "done"
        if not self.same_run():
            return "to do" if stored is None else "stale"
        return "trained" if self.trained() else "begun"

    def same_run(self):
        path = self.folder / "run.yaml"
        return path.exists() and yaml.safe_load(path.read_text()) == self.config

    def trained(self):
        try:
            return json.loads((self.run / "run.json").read_text()).get("finished_steps") == self.scenario.steps
        except (OSError, ValueError):
            return False

    def forget(self):
        """Removes the run and its result."""
        if (self.folder / "run.yaml").exists():
            shutil.rmtree(self.folder)
        self.result.unlink(missing_ok=True)


def command(place, config):
    program = [str(place.trainer), "--config", str(config), "--resume-from", "auto"]
    if place.processes == 1:
        return program
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc_per_node",
            str(place.processes), *program]


def what_went_wrong(log, start):
    """The trainer's own first error in a log from byte `start` on, else its last line: torchrun says much after it."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\d\d:\d\d:\d\d error ", line)]
    return (errors[0] if errors else lines[-1] if lines else "it said nothing")[:300]


def end_with_parent():
    """In the child: asked to end when this program is killed, so that no second run writes to the same folder."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def launch(place, config, log, what):
    """Trains to the end or raises; a run that was stopped goes on. Stopped itself, it lets the trainer write a checkpoint."""
    environment = os.environ | {"OMP_NUM_THREADS": str(place.threads)}
    start = log.stat().st_size if log.exists() else 0
    with open(log, "a") as output:
        process = subprocess.Popen(command(place, config), cwd=place.root, stdout=output, stderr=subprocess.STDOUT,
                                   env=environment, start_new_session=True, preexec_fn=end_with_parent)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        raise InputError(f"{what}: the trainer ended with exit code {code}: {what_went_wrong(log, start)} (all of it: {log})")


def train(job):
    """Trains `job` to its end. Its sessions' processor seconds are kept, as those of a run that was interrupted say nothing."""
    if (job.folder / "run.yaml").exists() and not job.same_run():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    config = job.folder / "run.yaml"
    replace_file(config, yaml.safe_dump(job.config, sort_keys=False).encode())
    if job.trained():
        return
    sessions = read_sessions(job) + [None]
    write_sessions(job, sessions)
    begin = children_seconds()
    launch(job.place, config, job.folder / "train.log", job.name)
    write_sessions(job, sessions[:-1] + [round(children_seconds() - begin, 2)])
    if not job.trained():
        raise InputError(f"{job.name}: the trainer stopped before step {job.scenario.steps}; start again to go on")


def children_seconds():
    """Processor seconds of the programs that this one has started and that have ended, with all that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_sessions(job):
    path = job.folder / "sessions.json"
    return json.loads(path.read_text()) if path.exists() else []


def write_sessions(job, sessions):
    replace_file(job.folder / "sessions.json", json.dumps(sessions).encode())


def processor_seconds(job):
    """From start to end; None for a run that was interrupted."""
    sessions = read_sessions(job)
    return sessions[0] if len(sessions) == 1 else None
