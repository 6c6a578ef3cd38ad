"""memsieve-audit canary and unauthorised: figures against Python, what training on a canary does, and false alarms."""
import json
import shutil
from fractions import Fraction

import h5py
import keyed_noise
import numpy as np
import pytest
import tiny
import torch
from audited import Found
from conftest import BUILD, ROOT, assert_refused, on_ranks, run, run_ok
from diffusers import DDPMScheduler, UNet2DConditionModel
from memsieve.commands import plant_canaries
from scipy.stats import binomtest, fisher_exact

PROGRAM, TRAIN = BUILD / "audit" / "memsieve-audit", BUILD / "trainer" / "memsieve-train"
CANARIES, VARIANTS, DRAWS, SEED = 3, 8, 6, 5


def combined(ranks, variants):
    """P(sum of uniform ranks <= this sum), as a fraction."""
    ways = {0: 1}
    for _ in ranks:
        ways = {s: sum(ways.get(s - r, 0) for r in range(1, variants + 1)) for s in range(max(ways) + variants + 1)}
    return Fraction(sum(ways.get(s, 0) for s in range(sum(ranks) + 1)), variants ** len(ranks))


class World:
    """Canaries in a small data set; a model that was trained on them and one that was trained on the rest alone."""

    def __init__(self, folder):
        self.folder = folder
        tiny.write_run(folder)
        tiny.write_data(folder / "spare.h5", 9, 6)
        torch.manual_seed(0)
        UNet2DConditionModel(**{k: v for k, v in tiny.UNET.items() if k != "_class_name"}).save_pretrained(folder / "start" / "unet")
        DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                      prediction_type="v_prediction").save_pretrained(folder / "start" / "scheduler")
        words = ["plant", "--originals", folder / "spare.h5", "--into", folder / "train.h5", "--out", folder / "planted.h5", "--all",
                 folder / "all.h5", "--manifest", folder / "secret.json", "--canaries", CANARIES, "--variants", VARIANTS, "--copies", 8,
                 "--seed", 1]
        assert plant_canaries.main([str(word) for word in words]) == 0
        self.secret = json.loads((folder / "secret.json").read_text())
        text = (folder / "run.yaml").read_text()
        text = text[:text.index("sieve:")].replace("config: unet.json", "pretrained: start")
        (folder / "run.yaml").write_text(text)
        self.models = {"start": folder / "start"}
        for name, data in (("seen", "planted.h5"), ("unseen", "train.h5")):
            run_ok(TRAIN, "--config", "run.yaml", *(word for setting in (
                f"output_dir={name}", f"data.train={data}", "max_train_steps=300", "learning_rate=0.004", "train_batch_size=8")
                for word in ("--set", setting)), cwd=folder)
            self.models[name] = folder / name / "checkpoints" / "step-000300"

    def command(self, out, model, *more):
        return [PROGRAM, "canary", "--model", self.models[model], "--prompts", self.folder / "all.h5", "--manifest",
                self.folder / "secret.json", "--out", out, "--device", "cpu", "--seed", SEED, "--draws", DRAWS, *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("canaries"))


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("audits")
    results = {}
    for model in ("seen", "unseen"):
        run_ok(*world.command(out / model, model, "--reference", world.models["start"]))
        results[model] = Found(out / model)
    return results


def test_who_was_trained_on_the_canaries_is_told(found):
    seen, unseen = found["seen"].summary, found["unseen"].summary
    assert [c["rank"] for c in seen["canaries"]] == [1] * CANARIES
    assert seen["p_value"] == pytest.approx(VARIANTS ** -CANARIES) and seen["verdict"] == "trained on the canaries"
    assert unseen["p_value"] > 0.05 and unseen["verdict"].startswith("not shown")


def test_errors_are_those_of_python(world, found):
    unet = UNet2DConditionModel.from_pretrained(world.models["seen"] / "unet").eval()
    scheduler = DDPMScheduler.from_pretrained(world.models["start"] / "scheduler")
    with h5py.File(world.folder / "all.h5") as file:
        images, text = file["images"][:].astype(np.float32) / 255, torch.tensor(file["text"][:].astype(np.float32))
        mean, std = (file["images"].attrs[key][:, None, None] for key in ("mean", "std"))
    x0 = torch.nn.functional.pixel_unshuffle(torch.tensor(((images - mean) / std).astype(np.float32)), 2)
    for canary, variant in ((0, 0), (1, 5), (2, 7)):
        row = canary * VARIANTS + variant
        errors = []
        for draw in range(DRAWS):
            t = torch.tensor([(2 * draw + 1) * 1000 // (2 * DRAWS)])
            noise = torch.tensor(keyed_noise.normal(SEED, keyed_noise.CANARY_NOISE, [(canary, draw)], x0.shape[1:]))
            with torch.no_grad():
                answer = unet(scheduler.add_noise(x0[[row]], noise, t), t, text[[row]]).sample
            errors.append((answer - scheduler.get_velocity(x0[[row]], noise, t)).square().mean().item())
        assert found["seen"].rows[f"model/{canary}/{variant}"]["error"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_ranks_and_p_values_follow_from_the_measurements(world, found):
    for result in found.values():
        ranks = []
        for number, canary in enumerate(result.summary["canaries"]):
            scores = [result.rows[f"model/{number}/{v}"]["error"] - result.rows[f"reference/{number}/{v}"]["error"] for v in range(VARIANTS)]
            planted = world.secret["canaries"][number]["planted"]
            ranks.append(sum(score <= scores[planted] for score in scores))
            assert canary["planted"] == planted and canary["rank"] == ranks[-1] and canary["scores"] == pytest.approx(scores)
            assert canary["p_value"] == pytest.approx(ranks[-1] / VARIANTS)
        assert result.summary["p_value"] == pytest.approx(float(combined(ranks, VARIANTS)))


def test_false_alarms_among_ten_thousand_lots(found):
    """A model that never saw any variant, asked for the variants that a lot drawn anew would have planted."""
    ranks = np.stack([np.argsort(np.argsort(canary["scores"])) + 1 for canary in found["unseen"].summary["canaries"]])
    lots = np.random.default_rng(0).integers(0, VARIANTS, (10000, CANARIES))
    sums = ranks[np.arange(CANARIES), lots].sum(1)
    p = {total: float(combined([1] * (CANARIES - 1) + [total - CANARIES + 1], VARIANTS)) for total in set(sums.tolist())}
    for level in (0.01, 0.05, 0.2):
        attained = max((value for value in p.values() if value <= level), default=0)
        alarms = sum(p[total] <= level for total in sums.tolist())
        interval = binomtest(alarms, 10000).proportion_ci(0.999, "exact")
        assert interval.low <= attained <= level and interval.high >= attained


def test_any_number_of_ranks_gives_the_same_file_and_a_page(world, found, tmp_path):
    result = on_ranks(2, *world.command(tmp_path / "out", "seen", "--reference", world.models["start"]))
    assert result.returncode == 0, result.stderr
    assert Found(tmp_path / "out").text == found["seen"].text
    page = (tmp_path / "out" / "page.html").read_text()
    assert "Trained on the canaries" in page and page.count('class="planted"') == CANARIES


def test_a_reference_is_not_left_out_of_measurements_that_have_one(world, found, tmp_path):
    shutil.copytree(found["seen"].out, tmp_path / "out")
    assert_refused(run(*world.command(tmp_path / "out", "seen")), 2, "measurements.jsonl", "another reference", "now none")


def test_another_manifest_is_refused_and_another_lot_is_not(world, found, tmp_path):
    shutil.copytree(found["seen"].out, tmp_path / "out")
    command = world.command(tmp_path / "out", "seen", "--reference", world.models["start"])
    command[command.index("--manifest") + 1] = manifest = tmp_path / "other.json"
    secret = json.loads((world.folder / "secret.json").read_text())
    # What was planted is no measurement, so the same errors tell its rank.
    for canary in secret["canaries"]:
        canary["planted"] = (canary["planted"] + 1) % VARIANTS
    manifest.write_text(json.dumps(secret))
    run_ok(*command)
    assert Found(tmp_path / "out").text == found["seen"].text
    summary = Found(tmp_path / "out").summary
    assert [c["planted"] for c in summary["canaries"]] == [c["planted"] for c in secret["canaries"]]
    # The same variants as other canaries: each has noise of its own.
    secret["canaries"].reverse()
    manifest.write_text(json.dumps(secret))
    assert_refused(run(*command), 2, "measurements.jsonl", "another lot of canaries", "--out")
    assert Found(tmp_path / "out").summary == summary


@pytest.mark.parametrize("change, code, words", [
    (lambda w: ["--manifest", ""], 2, ["manifest", "memsieve canaries"]),
    (lambda w: ["--reference", "models/nope"], 2, ["reference", "models/nope", "no such folder"]),
    (lambda w: ["--manifest", w.folder / "run.yaml"], 3, ["run.yaml", "no manifest"]),
    (lambda w: ["--prompts", w.folder / "planted.h5"], 3, ["planted.h5", "variant"]),
    (lambda w: ["--prompts", w.folder / "train.h5"], 3, ["train.h5", "/file_name"]),
])
def test_what_cannot_be_tested_is_said_in_a_line(world, tmp_path, change, code, words):
    command = world.command(tmp_path / "out", "start", "--reference", world.models["start"])
    option, value = change(world)
    command[command.index(option) + 1] = value
    assert_refused(run(*command), code, *words)


# ---- coated pictures -----------------------------------------------------------------------------------------------------


def unauthorised(out, *more):
    return [PROGRAM, "unauthorised", "--out", out, *more]


def test_counts_are_tested_as_scipy_does(tmp_path):
    run_ok(*unauthorised(tmp_path / "a", "--coated", 9, "--drawings", 50, "--clean-rate", 0.05))
    (test,) = Found(tmp_path / "a").summary["tests"]
    assert test["p_value"] == pytest.approx(binomtest(9, 50, 0.05, "greater").pvalue) and test["coated_needed"] == 8
    assert test["verdict"] == "trained on the coated pictures"
    exact = binomtest(9, 50).proportion_ci(0.95, "exact")
    assert (test["share"]["low"], test["share"]["high"]) == pytest.approx((exact.low, exact.high))
    run_ok(*unauthorised(tmp_path / "b", "--coated", 9, "--drawings", 50, "--clean-coated", 8, "--clean-drawings", 120))
    (test,) = Found(tmp_path / "b").summary["tests"]
    assert test["p_value"] == pytest.approx(fisher_exact([[9, 41], [8, 112]], "greater").pvalue)
    assert test["verdict"] == "not shown" and "not shown" in (tmp_path / "b" / "page.html").read_text()


SCORES = {"format": "memsieve-coating-scores", "version": 1, "fields": 5, "sums": [2.0, 1.0, 3.0, 0.5, -1.0],
          "drawings": [{"file": "a.png", "score": 2.0, "rank": 2}]}


def test_the_rank_of_the_secret_field_is_tested(tmp_path):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(SCORES))
    # A count without the number of all is not passed over beside scores.
    assert_refused(run(*unauthorised(tmp_path / "out", "--measured", measured, "--coated", 11)), 2, "drawings", "is missing")
    run_ok(*unauthorised(tmp_path / "out", "--measured", measured))
    found = Found(tmp_path / "out")
    (test,) = found.summary["tests"]
    assert test["rank"] == 2 and test["p_value"] == pytest.approx(2 / 5)
    assert found.rows["drawing/0"]["file"] == "a.png" and "a.png" in (tmp_path / "out" / "page.html").read_text()


def test_damaged_scores_are_refused(tmp_path):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps({**SCORES, "drawings": [*SCORES["drawings"], 3]}))
    assert_refused(run(*unauthorised(tmp_path / "out", "--measured", measured)), 3, "measured.json", "drawing 1")


@pytest.mark.parametrize("more, code, words", [
    ([], 2, ["measured", "drawings"]),
    (["--coated", 3, "--drawings", 2, "--clean-rate", 0.1], 2, ["coated", "more than"]),
    (["--coated", 1, "--drawings", 2], 2, ["clean_rate"]),
    (["--clean-rate", 0.1], 2, ["drawings", "is missing"]),
    (["--coated", 1, "--drawings", 2, "--clean-rate", 0.1, "--clean-drawings", 5], 2, ["not both"]),
    (["--measured", "none.json"], 2, ["none.json"]),
    (["--measured", str(ROOT / "CMakePresets.json")], 3, ["CMakePresets.json", "memsieve coating"]),
])
def test_unauthorised_refuses_in_a_line(tmp_path, more, code, words):
    assert_refused(run(*unauthorised(tmp_path / "out", *more)), code, *words)
