#!/usr/bin/env python3
"""Our training step against the same step in Python: torch and diffusers' UNet, in a loop like that of the published script
(Wen et al., ICLR 2024). Same weights, batch, precision, filter and number of threads; rounds of both alternate. The last line is
one JSON object; its ratios are medians over rounds of images/s of ours over Python's.

  compare_python.py [--cases demo,sd15_quarter] [--rounds 5] [--compile none|demo|all] [--precision no|bf16] [--batch N] [--apart]
                    [--variants published,plain,ours] [--steps N] [--compile-seconds 240]
"""
import argparse
import json
import select
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "build" / "release" / "bench" / "memsieve-bench-train-step"
# name: UNet of make_case.py (None: the demo's own), height and width of the latents, rows of a batch
CASES = {"demo": (None, 16, 32), "sd15_quarter": ("sd15_quarter", 32, 4), "sd15_quarter_64": ("sd15_quarter", 64, 2),
         "sd15": ("sd15", 64, 8)}
APART = {"sd15"}        # several at a time do not fit into a GPU's memory
SECONDS = 2.5           # about what one measurement of a round takes


class Worker:
    """A process that gets a line of words and answers with a line of JSON."""

    def __init__(self, *command):
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        cwd=ROOT)

    def answer(self, seconds=1800):
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer within {seconds} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[0]} ended with code {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words, seconds=1800):
        print(*words, file=self.process.stdin, flush=True)
        return self.answer(seconds)

    def end(self):
        self.process.kill()
        self.process.wait()


class Variant:
    """What is compared: a worker, and what it is asked for N steps. `apart`: it lives only while it is asked."""

    def __init__(self, start, apart, *words):
        self.start, self.apart, self.words, self.worker, self.about = start, apart, words, None, None

    def open(self):
        if self.worker is None:
            self.worker = self.start()
            self.about = self.worker.answer()

    def ask(self, *words, seconds=1800):
        """With words of one's own; starts the worker if there is none, and ends it if it lives apart."""
        self.open()
        answer = self.worker.ask(*words, seconds=seconds) if words else self.about
        if self.apart:
            self.end()
        return answer

    def measure(self, steps):
        if self.apart:
            self.open()
            self.worker.ask(*self.words, 2)
        return self.ask(*self.words, steps)

    def end(self):
        if self.worker:
            self.worker.end()
            self.worker = None


def prepare(name, batch):
    """What both sides need to know of a case, as a dictionary."""
    import yaml
    unet, side, rows = CASES[name]
    case = {"name": name, "batch": batch or rows}
    if unet is None:
        case |= {"configs": {"published": "configs/demo_published.yaml", "ours": "configs/demo.yaml"}}
    else:
        folder = ROOT / "data" / "bench" / f"{name}-{case['batch']}"
        shutil.rmtree(folder / "unet", ignore_errors=True)   # weights of an earlier call
        subprocess.run([sys.executable, ROOT / "bench" / "make_case.py", "--unet", unet, "--latents", str(side), "--batch",
                        str(case["batch"]), "--out", folder], check=True)
        case |= {"configs": {kind: str(folder / f"{kind}.yaml") for kind in ("published", "ours")}, "made": str(folder)}
    keys = yaml.safe_load((ROOT / case["configs"]["published"]).read_text())
    case |= {"data": keys["data"]["train"], "learning_rate": keys["learning_rate"], "unet": keys["model"].get("pretrained"),
             "prediction_type": keys.get("prediction_type", "epsilon")}
    return case


def start_ours(case, kind, threshold, precision, rows):
    """Ours with the published rule, with our rule, or plain."""
    settings = [f"train_batch_size={case['batch']}", f"model.pretrained={case['unet']}", "model.config=", "proportion_empty_prompts=0",
                f"mixed_precision={precision}"]
    if kind == "ours" and "made" not in case:
        settings.append(f"sieve.block_rows={min(16, case['batch'])}")   # a block is never larger than a batch
    settings += {"plain": ["filter=off"], "published": [f"sieve.threshold.drop={threshold}"], "ours": []}[kind]
    config = case["configs"]["ours" if kind == "ours" else "published"]
    return Worker(BINARY, "--config", config, *(word for s in settings for word in ("--set", s)), "--serve", rows)


def tolerances(precision, device):
    """Relative differences that the first steps may have. bfloat16, and TF32 in a GPU's convolutions, round a thousand times as
    coarsely as float32, and a row near the threshold may then fall on either side."""
    return {"loss": 1e-4, "grad_norm": 1e-4} if (precision, device) == ("no", "cpu") else {"loss": 2e-2, "grad_norm": 0.25}


def difference_of(case, found, expected, allowed):
    """The largest relative difference of the first steps' losses and gradient norms; an error if it is too large."""
    differences = {key: abs(found[key] - expected[key]) / abs(expected[key]) for key in allowed}
    if not all(differences[key] < allowed[key] for key in allowed):
        raise SystemExit(f"compare-python: {case['name']}: the first steps differ: ours {found}, Python's {expected}")
    if not 0 < expected["dropped"] < case["batch"]:
        raise SystemExit(f"compare-python: {case['name']}: {expected['dropped']} of {case['batch']} rows dropped; the check says nothing")
    return max(differences.values())


def measure(case, variants, steps, rounds):
    """Answers of every variant in every round; every other round goes backwards."""
    answers = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants) if number % 2 == 0 else list(variants)[::-1]:
            answers[name].append(variants[name].measure(steps))
        print(f"{case['name']} round {number + 1}: " + ", ".join(f"{name} {answers[name][-1]['wall_ms']:.0f} ms" for name in variants),
              flush=True)
    return answers


def ratio(answers, mine, theirs, key="wall_ms"):
    return round(statistics.median(b[key] / a[key] for a, b in zip(answers[mine], answers[theirs])), 3)


def start_python(case, precision, *more):
    return Worker(sys.executable, __file__, "--worker", json.dumps(case), "--precision", precision, *more)


def compare_compiled(case, ours, steps, args):
    """The same against torch.compile, or why not."""
    compiled = Variant(lambda: start_python(case, args.precision, "--compiled"), ours.apart, "published")
    try:
        began = time.monotonic()
        compiled.ask("published", 2, seconds=args.compile_seconds)
        seconds = time.monotonic() - began
        answers = measure(case, {"ours": ours, "compiled": compiled}, steps, args.rounds)
        return {"speedup": ratio(answers, "ours", "compiled"), "compilation_s": round(seconds, 1)}
    except TimeoutError:
        return f"not measured: compilation takes more than {args.compile_seconds} s"
    except RuntimeError as error:
        return f"not measured: {error}"
    finally:
        compiled.end()


def compare(name, args):
    case = prepare(name, args.batch)
    folder = ROOT / "data" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    if case["unet"] is None:
        case["unet"] = case["made"] + "/unet"
    apart, rows = args.apart or name in APART, folder / "published.safetensors"

    def python(kind):
        return Variant(lambda: start_python(case, args.precision), apart, kind)

    def ours(kind):
        return Variant(lambda: start_ours(case, kind, about["threshold"], args.precision, folder / f"{kind}.safetensors"), apart)

    mine, other = "ours, published rule", "Python, published rule"
    variants = {mine: ours("published"), other: python("published")}
    if "plain" in args.variants:
        variants |= {"ours, plain": ours("plain"), "Python, plain": python("plain")}
    if "ours" in args.variants:
        variants["ours, our rule"] = ours("ours")
    try:
        about = variants[other].ask()
        found, expected = variants[mine].ask(1), variants[other].ask("check", rows, about["threshold"])
        difference = difference_of(case, found, expected, tolerances(args.precision, about["device"]))
        steps = args.steps
        if not steps:
            warm = measure(case | {"name": f"{name} warm-up"}, variants, 2, 1)
            steps = max(1, min(50, round(1000 * SECONDS / warm[mine][0]["wall_ms"])))
        answers = measure(case, variants, steps, args.rounds)
        result = {"speedup": ratio(answers, mine, other),
                  **({"speedup_plain": ratio(answers, "ours, plain", "Python, plain")} if "plain" in args.variants else {}),
                  **({"speedup_our_rule": ratio(answers, "ours, our rule", other)} if "ours" in args.variants else {}),
                  "speedup_cpu_time": ratio(answers, mine, other, "cpu_ms"),
                  "range": [round(f(b["wall_ms"] / a["wall_ms"] for a, b in zip(answers[mine], answers[other])), 3) for f in (min, max)],
                  "images_per_s": {kind: round(1000 * case["batch"] / statistics.median(a["wall_ms"] for a in answers[kind]), 2)
                                   for kind in variants},
                  "batch": case["batch"], "steps": steps, "first_step_difference": difference, "threads": about["threads"],
                  "device": about["device"]}
        if args.compile == "all" or args.compile == name:
            print(json.dumps(summary({name: result}, args)), flush=True)   # should the compilation never end
            result["torch_compile"] = compare_compiled(case, variants[mine], steps, args)
        return result
    finally:
        for variant in variants.values():
            variant.end()


def summary(results, args):
    """The line of JSON: figures by name, then by case."""
    out = {key: {name: result[key] for name, result in results.items() if key in result}
           for key in ("speedup", "speedup_plain", "speedup_our_rule", "speedup_cpu_time", "torch_compile", "range", "images_per_s",
                       "batch", "steps", "first_step_difference")}
    first = next(iter(results.values()))
    return out | {"filter": "published", "precision": args.precision, "rounds": args.rounds, "threads": first["threads"],
                  "device": first["device"]}


# The Python side.

class Loop:
    """The published training loop. Latents and captions lie in memory; everything else is done in each step as it is there."""

    def __init__(self, case, precision, compiled):
        import torch
        from diffusers import DDPMScheduler, UNet2DConditionModel
        torch.manual_seed(1)
        self.torch, self.case, self.precision = torch, case, precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if "made" in case and not (Path(case["unet"]) / "config.json").exists():
            config = json.loads((Path(case["made"]) / "unet.json").read_text())
            UNet2DConditionModel.from_config(config).save_pretrained(case["unet"])
        self.unet = UNet2DConditionModel.from_pretrained(case["unet"], torch_dtype=torch.float32).to(self.device).train()
        torch.manual_seed(1)   # whoever has made the weights
        self.called = torch.compile(self.unet) if compiled else self.unet
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                       prediction_type=case["prediction_type"])
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=case["learning_rate"], weight_decay=1e-2)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1)
        self.latents, self.text, self.null = (tensor.to(self.device) for tensor in self.read(case["data"]))
        self.threshold = self.some_threshold()

    def read(self, path):
        import h5py
        import numpy as np
        torch = self.torch
        with h5py.File(ROOT / path) as file:
            text, null = (torch.from_numpy(file[name][:].astype(np.float32)) for name in ("text", "null_text"))
            if "latents" in file:
                return torch.from_numpy(file["latents"][:].astype(np.float32)), text, null
            images = file["images"]
            mean, std = (torch.tensor(images.attrs[name], dtype=torch.float32).view(3, 1, 1) for name in ("mean", "std"))
            pixels = (torch.from_numpy(images[:]).float() / 255 - mean) / std
            return torch.nn.functional.pixel_unshuffle(pixels, int(images.attrs["pixel_unshuffle"])), text, null

    def rows(self):
        """noisy latents, timesteps, captions' states, target"""
        torch = self.torch
        which = torch.randint(0, len(self.latents), (self.case["batch"],), device=self.device)
        latents, text = self.latents[which], self.text[which]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        epsilon = self.case["prediction_type"] == "epsilon"
        return noisy, timesteps, text, noise if epsilon else self.scheduler.get_velocity(latents, noise, timesteps)

    def predict(self, noisy, timesteps, text):
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.precision == "bf16"):
            return self.called(noisy, timesteps, text).sample.float()  # as accelerate does

    def magnitudes(self, prediction, noisy, timesteps):
        with self.torch.no_grad():
            null = self.predict(noisy, timesteps, self.null.expand(len(noisy), -1, -1))
            return (prediction - null).reshape(len(noisy), -1).norm(p=2, dim=1)

    def some_threshold(self):
        """One beyond which about a quarter of the rows lie at the start."""
        with self.torch.no_grad():
            noisy, timesteps, text, _ = self.rows()
            return self.magnitudes(self.predict(noisy, timesteps, text), noisy, timesteps).quantile(0.7).item()

    def loss_of(self, rows, filtered):
        noisy, timesteps, text, target = rows
        prediction = self.predict(noisy, timesteps, text)
        if filtered:
            keep = self.magnitudes(prediction, noisy, timesteps) < self.threshold
            prediction, target = prediction[keep], target[keep]
        if len(prediction) == 0:
            return None
        return self.torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="mean")

    def step(self, filtered):
        loss = self.loss_of(self.rows(), filtered)
        if loss is None:
            return
        loss.item()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()

    def check(self, path, threshold):
        """Loss over all rows, rows dropped and norm of the gradient for rows that ours has written; no update."""
        from safetensors.torch import load_file
        torch, self.threshold = self.torch, threshold
        saved = {name: tensor.to(self.device) for name, tensor in load_file(path).items()}
        if not torch.equal(saved["null_text"], self.null):
            raise SystemExit("compare-python: the empty captions differ")
        rows = [saved[name] for name in ("noisy", "timestep", "text", "target")]
        with torch.no_grad():
            prediction = self.predict(*rows[:3])
            dropped = (self.magnitudes(prediction, *rows[:2]) >= self.threshold).sum().item()
            loss = torch.nn.functional.mse_loss(prediction.float(), rows[3]).item()
        self.loss_of(rows, True).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0).item()
        self.optimizer.zero_grad()
        return {"loss": loss, "grad_norm": norm, "dropped": dropped}

    def steps(self, filtered, count):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.step(filtered)
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return {"wall_ms": 1000 * (time.perf_counter() - wall) / count, "cpu_ms": 1000 * (time.process_time() - cpu) / count}


def work(args):
    answers, sys.stdout = sys.stdout, sys.stderr   # what libraries print must not get between the answers
    loop = Loop(json.loads(args.worker), args.precision, args.compiled)
    answer = {"threshold": loop.threshold, "threads": loop.torch.get_num_threads(), "device": loop.device.type}
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        words = sys.stdin.readline().split()
        if not words:
            return
        answer = loop.check(words[1], float(words[2])) if words[0] == "check" else loop.steps(words[0] == "published", int(words[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="demo,sd15_quarter", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", choices=("none", "demo", "all"), default="demo", help="cases to measure torch.compile in, too")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--batch", type=int, help="rows of a batch instead of each case's own")
    parser.add_argument("--apart", action="store_true", help="start every variant anew in each round, for UNets of which memory holds "
                        "only one; always so for sd15")
    parser.add_argument("--variants", default="published,plain,ours", help="what is compared beside the published rule")
    parser.add_argument("--steps", type=int, default=0, help=f"of each variant in a round (default: as many as take {SECONDS} s, which "
                        "a round of warming up finds)")
    parser.add_argument("--compile-seconds", type=int, default=240, help="a compilation that takes longer is given up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    names, args.variants = args.cases.split(","), args.variants.split(",")
    unknown = [name for name in names if name not in CASES]
    if args.batch is not None and args.batch < 2:
        parser.error("--batch must be at least 2: of the rows that both sides are compared on some must be dropped, some not")
    if unknown or args.rounds < 1 or args.steps < 0:
        parser.error(f"unknown case {unknown[0]}; there are {', '.join(CASES)}" if unknown else
                     "--rounds must be at least 1, --steps at least 0")
    if set(args.variants) - {"published", "plain", "ours"}:
        parser.error(f"--variants {','.join(args.variants)}: give some of published,plain,ours")
    print(json.dumps(summary({name: compare(name, args) for name in names}, args)))


if __name__ == "__main__":
    sys.exit(main())
