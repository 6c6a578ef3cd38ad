"""The maker of the demo data and the report, against figures worked out by hand."""

import json
import re
from pathlib import Path

import demo_sources as sources
import h5py
import make_demo_data as maker
import numpy as np
import pytest
from conftest import ROOT
from fake_sources import clear_picture, fake_encode, fake_pairs, use_fakes
from memsieve import hdf5_rows, ledger
from memsieve.commands import report
from memsieve.reports import figures, run
from PIL import Image

# ---- the maker of the demo data ----------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    return use_fakes(monkeypatch, tmp_path)


def test_files_have_the_documented_layout(small, tmp_path):
    assert small("set", "--copies", "5") == 0
    rows = {"base": None, "mix": 3 * 5 + 6 + 7, "held_out": 4, "validation": 5, "prompts": 5}
    for name, count in rows.items():
        with h5py.File(tmp_path / "set" / f"{name}.h5") as file:
            assert file.attrs["format"] == "memsieve-dataset" and file.attrs["version"] == 1
            n = len(file["images"])
            assert count is None or n == count
            assert file["images"].dtype == np.uint8 and file["images"].shape == (n, 3, 32, 32)
            assert file["images"].attrs["mean"].shape == (3,) and file["images"].attrs["mean"].dtype == np.float64
            assert file["images"].attrs["pixel_unshuffle"] == 2
            assert file["text"].dtype == np.float16 and file["text"].shape == (n, 12, 384)
            assert file["null_text"].shape == (12, 384) and file["null_text"].dtype == np.float16
            assert file["group_id"].dtype == np.int64 and file["repeated"].dtype == np.uint8
            captions = hdf5_rows.read_texts(file, "caption")
            assert len(captions) == n and all(word.startswith(("an emoji of ", "a stamp of ")) for word in captions)
            assert "".join(captions).encode() == file["caption_bytes"][:].tobytes()
            assert all(data.fletcher32 and h5py.check_string_dtype(data.dtype) is None for data in file.values())
    with h5py.File(tmp_path / "set/prompts.h5") as file:
        assert list(file["repeated"][:]) == [1, 1, 1, 0, 0]


def test_texts_come_back_from_bytes_and_from_strings(tmp_path):
    texts = ["a ✓", "", "two\nlines", ""]
    with h5py.File(tmp_path / "texts.h5", "w") as file:
        hdf5_rows.store_texts(file, "new", texts)
        hdf5_rows.store_texts(file, "empty", ["", ""])
        file.create_dataset("old", data=texts, dtype=h5py.string_dtype())
    with h5py.File(tmp_path / "texts.h5") as file:
        for name in ("new", "old"):
            assert hdf5_rows.count_texts(file, name) == 4 and hdf5_rows.read_texts(file, name) == texts
            assert [hdf5_rows.read_text(file, name, row) for row in range(4)] == texts
        assert hdf5_rows.read_texts(file, "empty") == ["", ""] and hdf5_rows.read_text(file, "empty", 1) == ""
        assert hdf5_rows.count_texts(file, "none") is None
        assert file["new_offsets"][:].tolist() == [0, 5, 5, 14, 14]


def groups(folder, name):
    with h5py.File(folder / f"{name}.h5") as file:
        return set(file["group_id"][:].tolist())


def test_parts_do_not_overlap(small, tmp_path):
    assert small("set") == 0
    folder = tmp_path / "set"
    base, mix, prompts = groups(folder, "base"), groups(folder, "mix"), groups(folder, "prompts")
    held_out, validation = groups(folder, "held_out"), groups(folder, "validation")
    assert not held_out & (base | mix | prompts | validation) and not validation & (base | mix | prompts)
    assert prompts <= mix and not prompts & base and len(mix & base) == 7
    assert len(base | mix | held_out | validation) == 60


def test_statistics_standardise_base(small, tmp_path):
    assert small("set") == 0
    with h5py.File(tmp_path / "set/base.h5") as file:
        pixels = file["images"][:] / 255.0
        assert np.allclose(file["images"].attrs["mean"], pixels.mean(axis=(0, 2, 3)))
        assert np.allclose(file["images"].attrs["std"], pixels.std(axis=(0, 2, 3)))
        text = file["text"][:].astype(np.float64).reshape(-1, 384)
        assert np.abs(text.mean(axis=0)).max() < 1e-3 and np.abs(text.std(axis=0) - 1).max() < 2e-3


def test_same_seed_same_bytes_and_other_seed_other_split(small, tmp_path):
    assert small("a") == 0 and small("b") == 0 and small("c", "--seed", "9") == 0
    for name in maker.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert groups(tmp_path / "a", "held_out") != groups(tmp_path / "c", "held_out")


def test_finished_set_is_left_alone_and_a_torn_one_made_again(small, tmp_path, capsys):
    assert small("set") == 0
    before = {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in maker.FILES}
    assert small("set") == 0 and "up to date" in capsys.readouterr().out
    assert before == {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in maker.FILES}
    whole = (tmp_path / "set/mix.h5").read_bytes()
    (tmp_path / "set/mix.h5").write_bytes(whole[:1000])
    assert small("set") == 0 and (tmp_path / "set/mix.h5").read_bytes() == whole
    assert {path.name for path in (tmp_path / "set").iterdir()} == set(maker.FILES)


def test_near_copies_share_a_group_and_differ(small, tmp_path):
    assert small("set", "--near", "--copies", "6") == 0
    with h5py.File(tmp_path / "set/mix.h5") as file, h5py.File(tmp_path / "set/prompts.h5") as prompts:
        images, group = file["images"][:], file["group_id"][:]
        for original, of in zip(prompts["images"][:3], prompts["group_id"][:3]):
            rows = images[group == of]
            assert len(rows) == 6 and len({row.tobytes() for row in rows}) == 6
            scores = figures.copy_scores(rows[None], original[None])[0]
            assert scores.max() > 0.999 and scores.min() > 0.1


def test_deduplicate_keeps_the_first_of_lookalikes():
    one, other = clear_picture(1), clear_picture(2)
    lookalike = np.clip(one.astype(int) + 3, 0, 255).astype(np.uint8)
    flat = np.full((3, 32, 32), 200, dtype=np.uint8)
    names = ["first", "lookalike", "flat", "FIRST", "second"]
    pairs = [sources.Pair(image, name, "emoji") for image, name in zip((one, lookalike, flat, other, other), names)]
    assert [pair.caption for pair in sources.deduplicate(pairs)] == ["first", "second"]


@pytest.mark.parametrize("line, phrase", [
    ("A frog.", "a frog"), ("Japanese Yen sign.", "Japanese Yen sign"), ("A wheelie bin! Give me your trash!", "a wheelie bin"),
    ("– Because a brain is a terrible thing to waste…", "Because a brain is a terrible thing to waste…"), ("  ", "")])
def test_stamp_phrase(line, phrase):
    assert sources.stamp_phrase(line) == phrase


def test_pictures_come_on_white_in_a_square():
    picture = Image.new("RGBA", (64, 32), (255, 0, 0, 255))
    pixels = sources.on_white(picture)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
    assert list(pixels[:, 16, 16]) == [255, 0, 0] and list(pixels[:, 1, 16]) == [255, 255, 255]


@pytest.mark.parametrize("option, package", [("--font", "fonts-noto-color-emoji"), ("--names", "unicode-data"),
                                             ("--stamps", "tuxpaint-stamps-default")])
def test_missing_package_is_named_in_one_line(small, capsys, option, package):
    assert small("set", option, "/nowhere") == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"apt-get install {package}" in error


@pytest.mark.skipif(not (Path(sources.FONT).exists() and Path(sources.NAMES).exists()), reason="no emoji font here")
def test_real_font_gives_named_pictures():
    pytest.importorskip("fontTools")
    pairs = {pair.caption: pair.image for pair in sources.read_emoji(sources.FONT, sources.NAMES)}
    assert len(pairs) > 1000
    red, green, blue = pairs["an emoji of large red square"][:, 16, 16].astype(int)
    assert red > 180 and green < 90 and blue < 90


def test_the_example_in_the_documentation_makes_a_valid_set(tmp_path, monkeypatch):
    page = (ROOT / "docs/data_format.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), {})
    with h5py.File("mine.h5") as file:
        assert file.attrs["format"] == "memsieve-dataset" and file.attrs["version"] == 1
        assert len({len(file[name]) for name in ("images", "text", "caption", "group_id")}) == 1
        assert file["null_text"].shape == file["text"].shape[1:]
        assert file["images"].dtype == np.uint8 and set(file["images"].attrs) == {"mean", "std", "pixel_unshuffle"}


# ---- the report --------------------------------------------------------------------------------------------------------

ROW = [("step", "u8"), ("epoch", "u4"), ("sample", "i8"), ("group", "i8"), ("timestep", "f4"), ("kind", "u1"),
       ("captioned", "u1"), ("flagged", "u1"), ("weight", "f4"), ("score", "f4"), ("threshold", "f4"),
       ("raw_magnitude", "f4"), ("z_magnitude", "f4")]


def write_run(folder, samples, ledger=None, losses=((1, 0.5),), step_ms=(10.0, 30.0, 20.0), seed=3):
    """A run folder; samples {step: [P, S, 3, H, W]}, ledger [(step, sample, kind, weight)]."""
    (folder / "samples").mkdir(parents=True)
    lines = [{"kind": "step", "step": i + 1, "loss": 0.4, "step_ms": ms} for i, ms in enumerate(step_ms)]
    lines += [{"kind": "validation", "step": step, "loss": loss} for step, loss in losses]
    torn = '{"kind": "step", "st'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    (folder / "config.yaml").write_text(f"seed: {seed}\nsieve:\n  enabled: {ledger is not None}\n")
    (folder / "run.json").write_text(json.dumps({"run_id": "r", "world_size": 2}))
    for step, images in samples.items():
        with h5py.File(folder / f"samples/step-{step:06d}.h5", "w") as file:
            file["images"] = images
    if ledger is not None:
        table = np.zeros(len(ledger), dtype=ROW)
        for row, (step, sample, kind, weight) in zip(table, ledger):
            row["step"], row["sample"], row["group"], row["kind"], row["weight"] = step, sample, sample, kind, weight
            row["raw_magnitude"], row["z_magnitude"], row["score"], row["threshold"] = 2.0, 1.0, 1 - weight, 0.5
        with h5py.File(folder / "ledger.h5", "w", libver="latest") as file:
            file.create_dataset("visits", data=table, chunks=(4,), maxshape=(None,), compression="gzip")
    return folder


@pytest.fixture
def demo(tmp_path):
    """mix.h5: rows 0 and 1 repeat picture A, rows 2 and 3 are B and C. prompts.h5: A (repeated), B (ordinary)."""
    pictures = [clear_picture(i) for i in range(3)]
    (tmp_path / "data").mkdir()
    for name, which, repeated in (("mix", [0, 0, 1, 2], [1, 1, 0, 0]), ("prompts", [0, 1], [1, 0])):
        with h5py.File(tmp_path / f"data/{name}.h5", "w") as file:
            file["images"] = np.stack([pictures[i] for i in which])
            file.create_dataset("caption", data=[f"an emoji of {i}" for i in which], dtype=h5py.string_dtype())
            file["group_id"], file["repeated"] = np.array(which), np.array(repeated, dtype=np.uint8)
    a, b, c = pictures
    other = 255 - a  # correlation -1
    none, half, both = [np.stack([np.stack(pair), np.stack([c, c])]) for pair in ((other, other), (a, other), (a, a))]
    # two visits of A a step; the filter keeps 2 + 2 + 0 + 0 of 8
    plain = [(step, row, 0, 1.0) for step in range(4) for row in range(4)]
    kept = [(step, row, 0, 0.0 if row < 2 and step >= 2 or (step, row) == (3, 2) else 1.0) for step, row, _, _ in plain]
    held_out = [(step, 0, 1, 1.0) for step in range(4)]
    write_run(tmp_path / "off", {1: none, 3: half, 4: both}, losses=((2, 0.5), (4, 0.40)), step_ms=(10, 12, 11, 90))
    write_run(tmp_path / "on", {4: none}, ledger=kept + held_out, losses=((2, 0.5), (4, 0.41)), step_ms=(12, 14, 13, 90))
    return tmp_path


def run_report(demo, *options):
    return report.main(["--off", str(demo / "off"), "--on", str(demo / "on"), "--data", str(demo / "data"), "--out",
                        str(demo / "out"), *options])


def test_copy_score_by_hand():
    original = np.array([0, 0, 255, 255], dtype=np.uint8).reshape(1, 1, 2, 2)
    drawn = np.array([[0, 0, 255, 255], [255, 255, 0, 0], [0, 255, 255, 255], [9, 9, 9, 9]], dtype=np.uint8).reshape(1, 4, 1, 2, 2)
    assert figures.copy_scores(drawn, original)[0] == pytest.approx([1.0, -1.0, 1 / np.sqrt(3), 0.0], abs=1e-9)


def test_copy_score_takes_one_mean_over_all_channels():
    rng = np.random.default_rng(0)
    original, drawn = rng.integers(0, 256, (2, 3, 8, 8)), rng.integers(0, 256, (2, 2, 3, 8, 8))
    expected = [[np.corrcoef(drawn[p, s].ravel(), original[p].ravel())[0, 1] for s in range(2)] for p in range(2)]
    assert figures.copy_scores(drawn.astype(np.uint8), original.astype(np.uint8)) == pytest.approx(np.array(expected))


def test_summary_by_hand(demo, capsys):
    assert run_report(demo) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    summary = json.loads((demo / "out/summary.json").read_text())
    assert summary["seed"] == 3 and summary["generations"] == 2
    assert summary["copies_off"] == 1.0 and summary["copies_on"] == 0.0
    assert summary["ordinary_copies_off"] == 0.0
    assert summary["correlation_off"] == pytest.approx(1.0) and summary["correlation_on"] == pytest.approx(-1.0)
    assert summary["repeated_dropped"] == pytest.approx(4 / 8) and summary["recall"] == pytest.approx(4 / 8)
    assert summary["ordinary_dropped"] == pytest.approx(1 / 8)
    assert summary["precision"] == pytest.approx(4 / 5)
    assert [quarter["recall"] for quarter in summary["quarters"]] == [0.0, 0.0, 1.0, 1.0]
    assert [quarter["precision"] for quarter in summary["quarters"]] == [None, None, 1.0, pytest.approx(2 / 3)]
    assert (summary["val_loss_off"], summary["val_loss_on"]) == (0.40, 0.41)
    assert (summary["step_ms_off"], summary["step_ms_on"]) == (11.5, 13.5)


def test_control_is_interpolated_between_samples(demo):
    """4 visits kept = the plain run after step 2, half way between the samples of step 1 (0%) and step 3 (50%)."""
    assert run_report(demo) == 0
    control = json.loads((demo / "out/summary.json").read_text())["control"]
    assert control["kept_visits"] == 4 and control["all_visits"] == 8
    assert control["step"] == pytest.approx(2.0) and control["between"] == [1, 3]
    assert control["copies"] == pytest.approx(0.25)


def test_passed_over_visits_count_as_dropped(demo):
    """Steps 2 and 3 pass over A's visits and train on rows 2 and 3 twice: the plain run sees as much in its steps 0 to 4."""
    trained = [(step, row, 0, 1.0) for step in range(2) for row in range(4)]
    trained += [(step, row, 0, 1.0) for step in (2, 3) for row in (2, 3, 2, 3)]
    others = [(2, 0, 2, 0.0), (2, 1, 2, 0.0), (3, 0, 2, 0.0), (3, 1, 2, 0.0), (3, 0, 3, 0.0), (3, 0, 1, 0.0)]
    write_run(demo / "passed", {4: np.zeros((2, 2, 3, 32, 32), np.uint8)}, ledger=trained + others)
    passed = run.Run.read(demo / "passed").visits()
    assert len(passed) == 20  # neither the look nor the held-out row
    overall, quarters = figures.drop_figures(passed, np.array([True, True, False, False]))
    assert overall["repeated_dropped"] == pytest.approx(4 / 8) and overall["ordinary_dropped"] == 0
    assert [quarter["repeated_dropped"] for quarter in quarters] == [0.0, 0.0, 1.0, 1.0]
    assert ledger.completed_without_passing_over(passed).tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5] + [4, 4, 5, 5]


def test_control_run_and_published_run(demo):
    assert run_report(demo, "--control", str(demo / "off"), "--published", str(demo / "on")) == 0
    summary = json.loads((demo / "out/summary.json").read_text())
    assert summary["copies_control"] == 1.0 and summary["control"]["source"] == "run"
    assert summary["copies_published"] == 0.0 and summary["ordinary_dropped_published"] == pytest.approx(1 / 8)
    assert summary["copies_control_published"] == pytest.approx(0.25)


def test_page_holds_everything_it_shows(demo):
    assert run_report(demo) == 0
    page = (demo / "out/report.html").read_text()
    sources_of = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources_of and all(value.startswith(("data:image/png;base64,", "#")) for value in sources_of)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page
    assert "NaN" not in page and "not told" in page
    with Image.open(demo / "out/report.png") as picture:
        assert picture.width == 1600


def test_page_says_so_when_evidence_was_pooled_over_groups(demo):
    with open(demo / "on/config.yaml", "a") as config:
        config.write("  evidence:\n    pool: group\n")
    assert run_report(demo) == 0
    page = (demo / "out/report.html").read_text()
    assert "pooled its evidence over group ids" in page and "not told" not in page


def test_ledger_is_read_while_it_is_written(demo):
    with h5py.File(demo / "on/ledger.h5", "a", libver="latest") as writer:
        writer.swmr_mode = True
        assert len(run.Run.read(demo / "on").visits()) == 16


def test_page_escapes_what_it_shows(demo):
    with h5py.File(demo / "data/prompts.h5", "a") as file:
        file["caption"][0] = 'a <b> & "c"'
    with open(demo / "on/config.yaml", "a") as config:
        config.write("note: <i>\n")
    assert run_report(demo, "--title", "<script>") == 0
    page = (demo / "out/report.html").read_text()
    assert "a &lt;b&gt; &amp; &#34;c&#34;" in page and "note: &lt;i&gt;" in page and "&lt;script&gt;" in page
    assert "<script>" not in page and "<i>" not in page and "a <b>" not in page


@pytest.mark.parametrize("text, seed, pool, scale", [
    ("{seed: 7, sieve: {evidence: {pool: group}, filters: {magnitude: {scale: log}}}}", 7, "group", "log"),
    ("sieve:  # seed: 5\n  filters:\n    magnitude:\n      seed: 4\nseed: '8'\n", 8, None, None),
    ("sieve: no\n", None, None, None), ("", None, None, None)])
def test_configuration_is_read_as_yaml(tmp_path, text, seed, pool, scale):
    (tmp_path / "config.yaml").write_text(text)
    config = run.Config.read(tmp_path)
    assert run.Run(tmp_path, config).seed == seed
    assert (config.get("sieve.evidence.pool"), config.get("sieve.filters.magnitude.scale")) == (pool, scale)
    visits = np.array([(0.0,), (1.0,)], dtype=[("raw_magnitude", "f4")])
    assert run.Run(tmp_path, config).magnitudes(visits) == pytest.approx([1.0, np.e] if scale == "log" else [0.0, 1.0])


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_run_json_is_one_line(demo, capsys, text):
    (demo / "on/run.json").write_text(text)
    assert run_report(demo) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "on/run.json: " in error


def test_broken_configuration_is_one_line_with_its_place(demo, capsys):
    (demo / "on/config.yaml").write_text("seed: 1\nsieve: [\n")
    assert run_report(demo) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(r"on/config\.yaml:\d: cannot be read as YAML", error)


@pytest.mark.parametrize("remove, words", [("on/ledger.h5", "no visits"), ("on/metrics.jsonl", "no such file"),
                                           ("off/samples/step-000001.h5", None), ("data/prompts.h5", "prompts.h5")])
def test_missing_input_is_one_clear_line(demo, capsys, remove, words):
    (demo / remove).unlink()
    status, error = run_report(demo), capsys.readouterr().err
    if words is None:
        assert status == 0 and not error
    else:
        assert status == 3 and error.count("\n") == 1 and words in error
        assert not (demo / "out/summary.json").exists()


def test_samples_of_other_prompts_are_refused(demo, capsys):
    with h5py.File(demo / "off/samples/step-000004.h5", "w") as file:
        file["images"] = np.zeros((5, 2, 3, 32, 32), dtype=np.uint8)
    assert run_report(demo) == 3
    assert "other prompts" in capsys.readouterr().err
