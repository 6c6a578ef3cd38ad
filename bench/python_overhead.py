#!/usr/bin/env python3
"""What the Python module costs beside the same loop in C++, as a share of a step of a quarter-width Stable Diffusion 1.5.

  python_overhead.py [--rounds 10] [--steps 48] [--whole-steps 2]

Two loops make the same calls of the sieve (rule `default`: probes, held-out pictures, looks, flagged samples passed over), from Python and
from C++; what a model would predict lies ready, so that nothing but the sieve and its bindings is timed: of a few samples nearly the target,
so that they are flagged. A third, in Python, makes whole steps: diffusers' UNet with random weights, 4 rows of 32x32 latents, the same rule,
AdamW. The three alternate; `overhead` is (Python's time - C++'s) / the whole step's, the median over rounds. The last line is one JSON
object.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("MEMSIEVE_BUILD", ROOT / "build" / "release"))
sys.path[:0] = [str(Path(__file__).parent), str(BUILD / "python")]

import torch  # noqa: E402
import yaml  # noqa: E402

import make_case  # noqa: E402
import memsieve  # noqa: E402
from compare_python import Worker  # noqa: E402

ROWS, SAMPLES, MEMORISED, HELD_OUT, TIMESTEPS, SIDE, TOKENS = 4, 64, 7, 16, 1000, 32, 77
DECIDED = ("probed", "dropped", "passed_over")  # rows; both loops must agree on them


class Ready:
    """Stands for a model whose predictions lie ready: a gain is all that is trained."""

    def __init__(self, rows, gain):
        self.rows, self.gain = rows, gain

    def __call__(self, which, timesteps):
        rows = self.rows[which]
        return rows if self.gain is None else rows * self.gain


class Unet:
    def __init__(self, config, noisy, text):
        from diffusers import UNet2DConditionModel
        self.unet, self.noisy, self.text = UNet2DConditionModel.from_config(config).train(), noisy, text

    def __call__(self, which, timesteps):
        return self.unet(self.noisy[which], timesteps, self.text[which], return_dict=False)[0]


class NoUpdate(torch.optim.Optimizer):
    """A fused optimiser that does nothing, so that what the sieve does around it is what is timed."""

    _step_supports_amp_scaling = True

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        pass


class Loop:
    """The loop of sieve_steps.cpp; `predict` and `start`: (which rows [k], timesteps [k]) -> [k, C, H, W]."""

    def __init__(self, rule, predict, start, optimizer, target, likeness):
        self.predict, self.start, self.optimizer, self.target, self.likeness = predict, start, optimizer, target, likeness
        self.sieve = memsieve.Sieve(rule, dataset_size=SAMPLES, batch_size=ROWS, num_timesteps=TIMESTEPS, held_out_size=HELD_OUT, device="cpu")
        self.batches = self.epochs()

    def epochs(self):
        batches = memsieve.PassOverBatches(self.sieve, shuffle=False)
        while True:
            yield from batches
            self.sieve.epoch += 1

    def about(self, ids, which, timesteps):
        return {"ids": ids, "timesteps": timesteps, "target": self.target[which], "likeness": self.likeness[which],
                "start": lambda rows: self.start(which[rows], timesteps[rows])}

    def step(self):
        which = torch.tensor(next(self.batches))
        timesteps = (which * 37 + self.sieve.clock[0]) % TIMESTEPS
        prediction = self.predict(which, timesteps)
        plan = self.sieve.inspect(prediction=prediction, **self.about(which, which, timesteps))
        plan.loss((prediction - self.target[which]).square().mean(dim=(1, 2, 3))).backward()
        with torch.no_grad():
            visits = self.sieve.held_out_visits()
            if visits:
                self.measure([visit.id for visit in visits], [SAMPLES + visit.picture for visit in visits], visits, self.sieve.observe)
            looks = self.sieve.looks()
            if looks:
                self.measure([look.id for look in looks], [look.id for look in looks], looks, self.sieve.look)
        self.sieve.step(self.optimizer)

    def measure(self, ids, which, visits, tell):
        which, timesteps = torch.tensor(which), torch.tensor([int(visit.timestep_fraction * TIMESTEPS) for visit in visits])
        tell(prediction=self.predict(which, timesteps), **self.about(torch.tensor(ids), which, timesteps))

    def steps(self, count, after):
        begin = time.perf_counter()
        for _ in range(count):
            self.step()
            after()
        wall = 1000 * (time.perf_counter() - begin) / count
        reports = self.sieve.reports()
        return {"wall_ms": wall, **{name: sum(getattr(report, name) for report in reports) for name in DECIDED}}


def sieve_alone(rule, gradients):
    torch.manual_seed(0)
    rows, target, start = (torch.randn(SAMPLES + HELD_OUT, 4, SIDE, SIDE) for _ in range(3))
    rows[:MEMORISED].mul_(0.1).add_(target[:MEMORISED])
    likeness = torch.randn(SAMPLES + HELD_OUT, 32)
    gain = torch.ones((), requires_grad=True)
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(gradients)]
    for parameter in parameters:
        parameter.grad = torch.ones(1)
    loop = Loop(rule, Ready(rows, gain), Ready(start, None), NoUpdate(parameters), target, likeness)

    def after():
        gain.grad = None

    return lambda count: loop.steps(count, after)


def whole_steps(rule, config):
    torch.manual_seed(0)
    noisy, target = (torch.randn(SAMPLES + HELD_OUT, 4, SIDE, SIDE) for _ in range(2))
    text, likeness = torch.randn(SAMPLES + HELD_OUT, TOKENS, config["cross_attention_dim"]), torch.randn(SAMPLES + HELD_OUT, 32)
    model, start = Unet(config, noisy, text), Unet(config, noisy, text)
    start.unet.load_state_dict(model.unet.state_dict())
    optimizer = torch.optim.AdamW(model.unet.parameters(), 1e-5, fused=True)
    loop = Loop(rule, model, start, optimizer, target, likeness)
    return lambda count: loop.steps(count, optimizer.zero_grad), len(optimizer.param_groups[0]["params"])


def measure(python, worker, whole, args):
    """Milliseconds a step of the three, a dictionary for each round; and how many samples the sieve alone passed over."""
    times, passed_over = [], 0
    try:
        worker.answer()
        for warm_up in (python, worker.ask):
            warm_up(2 * args.steps)
        whole(1)
        for number in range(args.rounds):
            found = {"python": python(args.steps), "cpp": worker.ask(args.steps)}
            if any(found["python"][name] != found["cpp"][name] for name in DECIDED):
                raise SystemExit(f"python-overhead: the loops differ: {found}")
            passed_over += found["cpp"]["passed_over"]
            found["step"] = whole(args.whole_steps)
            times.append({name: one["wall_ms"] for name, one in found.items()})
            print(f"round {number + 1}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in times[-1].items()), flush=True)
    finally:
        worker.end()
    return times, passed_over


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=48, help="steps of the sieve alone in a round (16 bring one with held-out rows)")
    parser.add_argument("--whole-steps", type=int, default=2, help="steps of the whole UNet in a round")
    parser.add_argument("--channels", type=int, help=argparse.SUPPRESS)  # of the UNet's first level; for the tests
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.whole_steps) < 1:
        parser.error("--rounds, --steps and --whole-steps must be at least 1")
    config = make_case.UNETS["sd15_quarter"]
    if args.channels:
        config = config | {"block_out_channels": [args.channels * times for times in (1, 2, 4, 4)]}
    with tempfile.TemporaryDirectory() as folder:
        rule = Path(folder) / "rule.yaml"
        rule.write_text(yaml.safe_dump({"sieve": make_case.sieve("default", ROWS)}))
        whole, gradients = whole_steps(rule, config)
        python = sieve_alone(rule, gradients)
        worker = Worker(BUILD / "bench" / "memsieve-bench-sieve-steps", rule, gradients)
        times, passed_over = measure(python, worker, whole, args)
    shares = [(one["python"] - one["cpp"]) / one["step"] for one in times]
    middle = {f"{name}_ms": round(statistics.median(one[name] for one in times), 3) for name in times[0]}
    print(json.dumps({"overhead": round(statistics.median(shares), 6), "range": [round(f(shares), 6) for f in (min, max)], **middle,
                      "rows": ROWS, "gradients": gradients, "passed_over": passed_over, "rounds": args.rounds, "steps": args.steps,
                      "threads": torch.get_num_threads(), "device": "cpu"}))


if __name__ == "__main__":
    main()
