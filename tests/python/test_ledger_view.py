"""memsieve view: against figures worked out by hand, and on a run of the trainer."""

import base64
import csv
import io
import re

import h5py
import numpy as np
import pytest
import tiny
from PIL import Image
from conftest import BUILD, run_ok
from memsieve import ledger
from memsieve.commands import ledger_view as view

VISIT = [("step", "u8"), ("sample", "i8"), ("group", "i8"), ("kind", "u1"), ("flagged", "u1"), ("weight", "f4"), ("score", "f4"),
         ("threshold", "f4"), ("z_magnitude", "f4")]
# step, sample, group, kind, flagged, weight, score, threshold, z
VISITS = [(0, 0, 7, 0, 0, 1, np.nan, np.inf, np.nan), (1, 1, 7, 0, 1, 0, 5, 4, 3), (2, 2, 9, 0, 0, 1, 1, 4, 0.5),
          (3, 0, 7, 0, 1, 0, 6, 4, 2), (4, 2, 9, 0, 1, 0.25, 4.5, 4, 1), (5, 3, 8, 0, 0, 1, 2, 4, 0.2), (6, 1, 1, 1, 0, 0, 9, 4, 9)]


def write(folder, visits=VISITS, thumbnails=True):
    """A run folder with a ledger, and the data set it names: rows 0 and 1 are copies."""
    (folder / "run").mkdir()
    with h5py.File(folder / "run/ledger.h5", "w", libver="latest") as file:
        file.create_dataset("visits", data=np.array(visits, dtype=VISIT), chunks=(4,), maxshape=(None,))
    (folder / "run/config.yaml").write_text(f'seed: 0\ndata:\n  held_out: ""\n  train: "{folder}/train.h5"\nmodel:\n  train: no\n')
    with h5py.File(folder / "train.h5", "w") as file:
        file.create_dataset("caption", data=["a <b> & c", "the same", "ordinary", "never lost"], dtype=h5py.string_dtype())
        file.create_dataset("file_name", data=[f"{i}.jpg" for i in range(4)], dtype=h5py.string_dtype())
        if thumbnails:
            file["thumbnail"] = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.full((4, 64, 64, 3), 40, np.uint8)
    return folder / "run"


def table(run):
    return list(csv.DictReader((run / "dropped.csv").open()))


def test_groups_are_counted_together_and_ordered_by_what_they_lost(tmp_path):
    run = write(tmp_path)
    assert view.main([str(run)]) == 0
    rows = table(run)
    assert [row["id"] for row in rows] == ["7", "9", "8"]
    first = rows[0]
    assert (first["rows"], first["visits"], first["dropped"], first["weight_lost"]) == ("2", "3", "2", "2.0")
    assert (first["first_dropped_step"], first["last_dropped_step"], first["highest_score"]) == ("1", "3", "6.0")
    assert (first["z_magnitude_when_flagged"], first["caption"], first["file_name"]) == ("2.5", "a <b> & c", "0.jpg")
    assert (rows[1]["dropped"], rows[1]["weight_lost"], rows[1]["z_magnitude_when_flagged"]) == ("0", "0.75", "1.0")
    assert (rows[2]["weight_lost"], rows[2]["first_dropped_step"], rows[2]["z_magnitude_when_flagged"]) == ("0.0", "", "")
    html = (run / "dropped.html").read_text()
    assert "2 of 6 visits dropped" in html and "2 of 3 groups" in html and "a &lt;b&gt; &amp; c" in html and "never lost" not in html
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert [picture.convert("RGB").getpixel((5, 5)) for picture in pictures] == [(0, 0, 0), (80, 80, 80)]
    assert html.count('class="lost"') == 2 and not re.search(r'(src|href)="(?!data:)', html)


def test_visits_that_were_passed_over_are_lost_and_looks_are_no_visits(tmp_path):
    nan = np.nan
    run = write(tmp_path, [*VISITS, (7, 3, 8, 2, 1, 0, nan, nan, nan), (8, 3, 8, 3, 1, 0, 9, 4, 9)])
    assert view.main([str(run)]) == 0
    lost = {row["id"]: row for row in table(run)}["8"]
    assert (lost["visits"], lost["dropped"], lost["first_dropped_step"]) == ("2", "1", "7")
    assert (lost["highest_score"], lost["z_magnitude_when_flagged"]) == ("2.0", "")


def test_of_any_trainer_with_its_pictures_or_without(tmp_path, monkeypatch):
    run = write(tmp_path)
    (run / "config.yaml").unlink()
    monkeypatch.chdir(run)
    assert view.main(["ledger.h5"]) == 0
    assert [row["caption"] + row["file_name"] for row in table(run)] == ["", "", ""] and "<img" not in (run / "dropped.html").read_text()
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (300, 200), (0, 0, 40 * number)).save(tmp_path / f"pictures/{number}.png")
    (tmp_path / "pictures/2.txt").write_text("the <third>\n")
    for lines in (["pictures/0.png", "", "pictures/2.png", "pictures/gone.png"],
                  [f"{sample}\tpictures/{sample}.png" for sample in (2, 0)] + ["3\tpictures/gone.png"]):
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
        assert view.main([str(run), "--data", str(tmp_path / "list.txt")]) == 0
        assert [(row["id"], row["caption"], row["file_name"]) for row in table(run)] == [
            ("7", "", "0.png"), ("9", "the <third>", "2.png"), ("8", "", "gone.png")]
        html = (run / "dropped.html").read_text()
        assert "the &lt;third&gt;" in html
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)]
        assert [(picture.size, picture.getpixel((5, 5))) for picture in pictures] == [((64, 43), (0, 0, 0)), ((64, 43), (0, 0, 80))]


def test_the_page_is_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = write(tmp_path)
    assert view.main([str(run)]) == 0 and not opened
    assert view.main([str(run), "--open"]) == 0 and opened == [(run / "dropped.html").as_uri()]


def test_frames(tmp_path):
    """By hand, of the visits above."""
    run = write(tmp_path, [*VISITS, (7, 3, 8, 2, 1, 0, np.nan, np.nan, np.nan), (8, 3, 8, 3, 1, 0, 9, 4, 9)])
    assert len(ledger.frame(run)) == len(VISITS) + 2 and ledger.frame(run)["kind"].tolist()[-3:] == ["held_out", "passed_over", "look"]
    assert ledger.training(run)["step"].tolist() == [0, 1, 2, 3, 4, 5, 7]
    lines = ledger.samples(run / "ledger.h5")
    assert lines.index.tolist() == [1, 0, 3, 2] and lines["group"].tolist() == [7, 7, 8, 9] and (lines["sample"] == lines.index).all()
    assert lines["dropped_share"].tolist() == [1, 0.5, 0.5, 0] and lines["weight_lost"].tolist() == [1, 1, 1, 0.75]
    assert lines["first_dropped_step"].tolist()[:3] == [1, 3, 7] and lines["last_dropped_step"].isna().tolist() == [False] * 3 + [True]
    assert lines["last_score"].tolist() == [5, 6, 2, 4.5] and lines["z_magnitude_when_flagged"].tolist()[:2] == [3, 2]
    groups = ledger.samples(ledger.frame(run), by="group")
    assert groups.index.tolist() == [7, 8, 9] and groups["sample"].tolist() == [0, 3, 2] and groups["rows"].tolist() == [2, 1, 1]


def test_samples_by_themselves_and_only_so_many(tmp_path):
    run = write(tmp_path)
    assert view.main([str(run), "--by", "sample", "--top", "1", "--out", str(tmp_path / "there")]) == 0
    rows = table(tmp_path / "there")
    assert [(row["id"], row["visits"], row["dropped"]) for row in rows] == [("1", "1", "1"), ("0", "2", "1"), ("2", "2", "0"),
                                                                             ("3", "1", "0")]
    assert (tmp_path / "there/dropped.html").read_text().count("<tr>") == 2
    assert not (run / "dropped.html").exists()


@pytest.mark.parametrize("config", [
    "data: {held_out: h.h5, train: NAME}\n", 'data:\n    train: "NAME"  # with a comment\n',
    "model:\n  train: no\ndata:\n  held_out: x\n\n  # train: y\n  train: 'NAME'\n"])
def test_data_train_is_found_however_the_yaml_is_written(tmp_path, config):
    run = write(tmp_path)
    (run / "config.yaml").write_text(config.replace("NAME", str(tmp_path / "train.h5")))
    assert view.main([str(run)]) == 0


def test_latents_without_thumbnails_and_a_run_that_dropped_nothing(tmp_path):
    run = write(tmp_path, [visit for visit in VISITS if visit[5] == 1], thumbnails=False)
    assert view.main([str(run)]) == 0
    html = (run / "dropped.html").read_text()
    assert "0 of 3 visits dropped" in html and "<img" not in html


@pytest.mark.parametrize("break_it, words", [
    (lambda folder: (folder / "run/ledger.h5").unlink(), ["ledger.h5", "no such file"]),
    (lambda folder: (folder / "run/config.yaml").write_text("data:\n  train: [\n"), ["config.yaml:", "YAML"]),
    (lambda folder: (folder / "run/config.yaml").write_text("data:\n  held_out: x\n"), ["config.yaml", "data.train", "--data"]),
    (lambda folder: (folder / "train.h5").unlink(), ["train.h5", "no such file"]),
    (lambda folder: (folder / "train.h5").write_bytes(b"\xff"), ["train.h5", "no text"]),
    (lambda folder: (folder / "train.h5").write_text("0\ta.png\nx\tb.png\n"), ["train.h5:2", "'x'", "no sample's id"]),
    (lambda folder: (folder / "train.h5").write_text("a.png\n"), ["train.h5", "1 rows", "sample 3", "--data"]),
    (lambda folder: write_visits(folder, VISITS[-1:]), ["ledger.h5", "no visit"]),
    (lambda folder: write_visits(folder, [(0, 4, 4, 0, 0, 1, 1, 4, 0)]), ["train.h5", "4 rows", "sample 4", "--data"]),
])
def test_mistakes_end_in_one_line(tmp_path, capsys, break_it, words):
    run = write(tmp_path)
    break_it(tmp_path)
    assert view.main([str(run)]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said


def write_visits(folder, visits):
    with h5py.File(folder / "run/ledger.h5", "w", libver="latest") as file:
        file["visits"] = np.array(visits, dtype=VISIT)


def test_of_a_run_of_the_trainer(tmp_path, monkeypatch):
    tiny.write_run(tmp_path)
    settings = ["max_train_steps=8", "sieve.standardise.by=none", "sieve.evidence.kind=visit", "sieve.threshold.kind=fixed",
                "sieve.threshold.drop=0.6", "sieve.filters.magnitude.scale=linear"]
    run_ok(BUILD / "trainer/memsieve-train", "--config", "run.yaml", *(word for s in settings for word in ("--set", s)), cwd=tmp_path)
    monkeypatch.chdir(tmp_path)  # data.train is relative to it
    assert view.main(["run"]) == 0
    with h5py.File("run/ledger.h5", "r", libver="latest", swmr=True) as file:
        visits = file["visits"][:]
    visits = visits[visits["kind"] == 0]
    rows = table(tmp_path / "run")
    assert sum(int(row["dropped"]) for row in rows) == (visits["weight"] == 0).sum() > 0
    assert sum(int(row["visits"]) for row in rows) == len(visits) == 32
    assert rows[0]["caption"].startswith("picture ") and rows[0]["z_magnitude_when_flagged"] != ""
    assert "<img" in (tmp_path / "run/dropped.html").read_text()


def test_a_list_with_ids_need_not_have_all(tmp_path, capsys):
    """One without ids must: its lines are samples 0, 1, ..."""
    run = write(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "ids.txt").write_text("1\ta.png\n")
    assert view.main([str(run), "--data", str(tmp_path / "ids.txt"), "--by", "sample"]) == 0
    assert {row["id"]: row["file_name"] for row in table(run)} == {"0": "", "1": "a.png", "2": "", "3": ""}
    (tmp_path / "lines.txt").write_text("a.png\na.png\n")
    capsys.readouterr()
    assert view.main([str(run), "--data", str(tmp_path / "lines.txt")]) == 3
    assert "has 2 rows, but the run visited sample 3" in capsys.readouterr().err
