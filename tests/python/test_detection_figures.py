"""The detection benchmark's figures against ones worked out by hand, and the page made of them."""
import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.stats as scipy_stats
from conftest import ROOT
from detection import book, measures, shares, table
from memsieve.reports.program import InputError

# ---- figures -----------------------------------------------------------------------------------------------------------


def hand_made_ledger():
    """(step, sample, kind, weight): two repeated rows (0, 1), two ordinary ones (2, 3), 8 steps."""
    lines = [(0, 0, 0, 1), (0, 2, 0, 1), (1, 1, 0, 0), (1, 3, 0, 1), (2, 0, 2, 1), (2, 2, 0, 0), (4, 1, 0, 0.5), (5, 3, 0, 1),
             (6, 0, 2, 0), (6, 1, 0, 0), (7, 2, 0, 1), (7, 3, 0, 1), (3, 0, 1, 0), (3, 2, 3, 0), (7, 1, 3, 0)]
    return np.array(lines, dtype=[("step", "u8"), ("sample", "i8"), ("kind", "u1"), ("weight", "f4")])


def test_drops_of_a_hand_made_ledger():
    """Passed over counts as dropped, whatever its weight; held-out rows and looks do not count at all."""
    visits, repeated = measures.training_visits(hand_made_ledger()), np.array([True, True, False, False])
    found = measures.drop_figures(visits, repeated, 8, {"half": 4})
    assert (found["repeated"]["all"]["hits"], found["repeated"]["all"]["total"]) == (4, 6)
    assert (found["ordinary"]["all"]["hits"], found["ordinary"]["all"]["total"]) == (1, 6)
    assert [shares.value(quarter) for quarter in found["repeated"]["quarters"]] == [0.5, 1, 0, 1]
    assert [shares.value(quarter) for quarter in found["ordinary"]["quarters"]] == [0, 1, 0, 0]
    assert shares.value(found["ordinary"]["parts"]["half"]) == pytest.approx(1 / 3)
    assert found["ordinary"]["rows_never_dropped"] == 0.5
    assert measures.kept_visits(visits, repeated) == 1.5


def test_intervals_are_wilson_s_and_know_of_clusters():
    for hits, total in ((0, 32), (3, 32), (16, 32), (32, 32)):
        alone = shares.share([1] * hits + [0] * (total - hits), [1] * total)
        reference = scipy_stats.binomtest(hits, total).proportion_ci(method="wilson")
        assert shares.interval(alone) == pytest.approx((reference.low, reference.high), abs=4e-3)
        # Drawings of a picture that are all alike say no more than one of them.
        alike = shares.share([5] * hits + [0] * (total - hits), [5] * total)
        reference = shares.interval(alone)
        assert shares.interval(alike) == pytest.approx(reference, rel=0.02)
    assert shares.interval(shares.share([], [])) is None and shares.pooled([]) is None


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "flow"])
def test_cyclic_denoising_ends_in_what_a_perfect_model_remembers(tmp_path, kind):
    """A model that predicts as if x0 were one picture turns any drawing into that picture."""
    torch = pytest.importorskip("torch")
    cyclic = pytest.importorskip("detection.cyclic")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    if kind != "flow":
        config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                  "beta_end": 0.012, "prediction_type": kind, "timestep_spacing": "leading", "steps_offset": 1,
                  "set_alpha_to_one": False, "clip_sample": False}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    steps = cyclic.steps_down(tmp_path, 25)
    assert len(steps) == 13 and max(step[0] for step in steps) == steps[0][0] and abs(steps[0][0] - 500) < 20
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)
    remembered = torch.randn(1, 12, 4, 4, generator=torch.Generator().manual_seed(1))
    asked = []

    def model(x, timestep, text):
        asked.append(len(x))
        if kind == "flow":
            level = timestep / 1000
            noise = (x - (1 - level) * remembered) / level
            return SimpleNamespace(sample=noise - remembered)
        a, s = float(alpha[int(timestep)].sqrt()), float((1 - alpha[int(timestep)]).sqrt())
        noise = (x - a * remembered) / s
        return SimpleNamespace(sample=noise if kind == "epsilon" else a * noise - s * remembered)

    x = torch.randn(3, 12, 4, 4, generator=torch.Generator().manual_seed(2))
    text = torch.zeros(3, 5, 6)
    done = cyclic.denoise(model, steps, x, text, text[0], 2.0, 2, torch.Generator().manual_seed(3))
    assert asked == [6] * 26  # with and without the caption
    assert (done - remembered).abs().max() < 0.15 < (x - remembered).abs().max()


def test_pixels_come_back(tmp_path):
    cyclic = pytest.importorskip("detection.cyclic")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    codec = cyclic.Codec({"mean": np.array([0.4, 0.5, 0.6]), "std": np.array([0.2, 0.3, 0.4]), "pixel_unshuffle": 2})
    assert codec.encode(pixels).shape == (4, 12, 4, 4)
    assert np.array_equal(codec.decode(codec.encode(pixels)), pixels)


def test_a_drawing_is_a_copy_of_any_variant(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    for name, rows, group in (("prompts", images[:2], [0, 1]), ("targets", images, [0, 1, 0])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["images"], file["group_id"] = rows, np.array(group)
            file["repeated"] = np.array([1, 0, 1][:len(rows)], np.uint8)
            file.create_dataset("caption", data=["x"] * len(rows), dtype=h5py.string_dtype())
    targets = measures.Targets(tmp_path)
    scores = targets.scores(np.stack([images[[2, 1]], images[[1, 2]]]))
    assert scores[0, 0] == pytest.approx(1) and scores[1, 0] == pytest.approx(1)
    assert scores[0, 1] < 0.5 and scores[1, 1] < 0.5


# ---- the page ----------------------------------------------------------------------------------------------------------


def result(scenario, rule, seed, hits, **more):
    """16 pictures, two drawings each, of which `hits` pictures are copied twice at the last step and none at the first."""
    drawings = [{"step": step, "copies": {"hits": [2] * count + [0] * (16 - count), "of": 2}, "correlation": 0.5,
                 "ordinary_copies": {"hits": [0], "of": 2}, "ordinary_correlation": 0.25}
                for step, count in ((0, 0), (400, hits))]
    return {"format": "memsieve-detection", "version": 1, "scenario": scenario, "rule": rule, "seed": seed, "rows": 1600,
            "repeated_rows": 400, "drawings": drawings, "validation": [[400, 0.25]], "step_ms": 200.0, "seconds": 100.0,
            "ordinary_row_ms": 10.0, "cyclic": {"copies": drawings[-1]["copies"]}, **more}


def dropped(share):
    parts = {"hits": 1000 * share, "total": 1000.0, "clusters": 100, "design": 2.0}
    return {"all": parts, "quarters": [parts] * 4, "parts": {}, "rows_never_dropped": 0.9}


def test_the_page_from_stored_results(tmp_path):
    stored = [result("a", "off", 1, 16), result("a", "off", 2, 12), result("d", "off", 1, 8)]
    # Half of the plain run's visits kept, 8 a step: at step 200, between no copies and all.
    some = dict(kept=1600.0, dropped={"repeated": dropped(0.5), "ordinary": dropped(0.02)})
    stored += [result("a", "default", 1, 1, **some, step_ms=210.0), result("a", "default", 2, 0, **some, validation=[[400, 0.26]])]
    stored = [*stored[:4], stored[4] | {"validation": [[400, 0.26]]}, result("d_groups", "default", 1, 4, **some)]
    stored += [result("b", "default", 1, 0, **some), result("h", "default", 1, 0, **some) | {"repeated_rows": 0}]
    for number, one in enumerate(stored):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    found = book.read(tmp_path)
    text = table.fill((ROOT / "docs/detection.md").read_text(), found)
    assert table.fill(text, found) == text  # what is written by hand stays
    # A scenario's rows are known from any run of it, with a filter or without.
    for scenario in ("a | the demo: 16 pictures, 40 copies each", "b | 16 other pictures", "d_groups | near copies with group ids"):
        assert f"| {scenario} | 1600, 25% of them repeated |" in text
    assert "| h | no copies, 60 epochs | 1600, none of them repeated |" in text and "| c | 48 pictures, 6 to 12 copies each | – |" in text
    lines = [line for line in text.splitlines() if line.startswith("| the demo")]
    off, on = lines[0], lines[1]
    assert "| no filter | 87.5%" in off and "(100.0, 75.0)" in off
    assert "| memsieve | 3.1%" in on and "(6.2, 0.0)" in on
    assert "| 43.8% (50.0, 37.5) |" in on  # the control: half of each seed's plain copies
    assert any("| 2.0% [" in line and "50.0/50.0/50.0/50.0%" in line for line in lines)
    cost = next(line for line in lines if "+2.0% (+0.0, +4.0)" in line)
    assert "| 1.02 (1.05, 1.00) |" in cost
    # d with group ids is compared with the plain runs of d.
    groups = next(line for line in text.splitlines() if line.startswith("| near copies with group ids | memsieve"))
    assert "| 25.0% [" in groups and "| 25.0% |" in groups
    assert "a **3.1%**" in text and "d_groups **25.0%**" in text and "a **2.0%**" in text and "a 50.0%" in text
    from detection import plot
    assert plot.svg(found) == plot.svg(found)


def test_pages_and_results_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="table: scenarios"):
        table.fill("# no marks\n", {})
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="x.json: not a result"):
        book.read(tmp_path)


def test_the_page_is_up_to_date():
    page = (ROOT / "docs/detection.md").read_text()
    assert table.fill(page, book.read(ROOT / "bench/detection/results")) == page
