"""The first pass of memsieve prepare: which pictures and captions a folder holds, what is skipped, what are copies, and
which picture goes to which file."""
import json

import numpy as np
import pytest
import tiny_pipeline
from PIL import Image
from diffusers import StableDiffusionPipeline
from memsieve.commands import prepare_dataset as tool
from memsieve.prepare import pictures as prepare_pictures
from memsieve.prepare import plan as prepare_plan
from prepared import images, pipelines, prepare, read, refused  # noqa: F401 (fixtures among them)
from test_prepare_dataset import check_latents


# ---- where pictures and captions come from -------------------------------------------------------------------------------


def captions_of(out):
    parts = [read(out / f"{part}.h5") for part in ("train", "held_out", "validation")]
    return {name: caption for data in parts for name, caption in zip(data["file_name"], data["caption"])}


def skipped(out):
    return {entry["file_name"]: entry["error"] for entry in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}


def test_captions_from_text_files(pipelines, tmp_path):
    images = tiny_pipeline.pictures(tmp_path / "images", 6)
    (images / "metadata.jsonl").unlink()
    (images / "deep").mkdir()
    want = {}
    for i, path in enumerate(sorted(images.glob("*.png"))):
        if i == 3:
            path = path.rename(images / "deep" / path.name)
        path.with_suffix(".caption" if i == 4 else ".txt").write_text(f"ein Käfer {i} ✓\n", encoding="utf-8")
        want[path.relative_to(images).as_posix()] = f"ein Käfer {i} ✓"
    tiny_pipeline.picture(99).save(images / "lost.png")
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--held-out", 1, "--validation", 1, code=4)
    assert captions_of(out) == want
    assert skipped(out) == {"lost.png": "no caption"}


def test_captions_from_csv(pipelines, images, tmp_path):
    (images / "metadata.jsonl").unlink()
    lines = ["file_name,words"] + [f'{i:02}.png,"one, two {i}"' for i in range(12)]
    (images / "metadata.csv").write_text("\n".join(lines))
    out = prepare(pipelines / "sd", images, tmp_path / "out", "--caption-column", "words")
    assert captions_of(out) == {f"{i:02}.png": f"one, two {i}" for i in range(12)}


def test_transparency_is_put_on_white_and_rotation_undone(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(prepare_pictures.open_picture(tmp_path / "clear.png")).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_pipeline.picture(1, (24, 16)).save(tmp_path / "turned.jpg", exif=exif)
    assert prepare_pictures.open_picture(tmp_path / "turned.jpg").size == (16, 24)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(prepare_pictures.open_picture(tmp_path / "grey.png")).shape == (8, 8, 3)


@pytest.mark.parametrize("lines, words", [
    ("{\"file_name\": \"00.png\"", ["metadata.jsonl:1", "JSON"]),
    ("[1]", ["metadata.jsonl:1", "not an object"]),
    ("\n{\"text\": \"a\"}", ["metadata.jsonl:2", "file_name"]),
    ("{\"file_name\": \"00.png\", \"text\": [\"a\"]}", ["metadata.jsonl:1", "'text'", "--caption-column"]),
    ("{\"file_name\": \"../00.png\", \"text\": \"a\"}", ["../00.png", "out of"]),
    ("", ["metadata.jsonl", "is empty"]),
])
def test_bad_metadata(pipelines, images, tmp_path, capsys, lines, words):
    (images / "metadata.jsonl").write_text(lines)
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, *words)


def test_captions_that_are_not_utf8(pipelines, images, tmp_path, capsys):
    (images / "metadata.jsonl").write_bytes(b'{"file_name": "00.png", "text": "caf\xe9"}\n')
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "UTF-8")


# ---- pictures that cannot be read ----------------------------------------------------------------------------------------


def test_unreadable_pictures_are_skipped_and_listed(pipelines, images, tmp_path, capsys):
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[:len(whole) // 2])
    (images / "05.png").write_text("no picture at all")
    (images / "07.png").unlink()
    Image.new("RGB", (5, 30)).save(images / "09.png")
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    listed = skipped(out)
    assert listed.keys() == {"03.png", "05.png", "07.png", "09.png"}
    assert listed["07.png"] == "no such file" and "5 x 30" in listed["09.png"]
    said = capsys.readouterr().err
    assert all(f"skipped {name}: " in said for name in listed)
    assert captions_of(out).keys() == {f"{i:02}.png" for i in range(12)} - listed.keys()
    check_latents(StableDiffusionPipeline.from_pretrained(pipelines / "sd"), read(out / "train.h5"), images)
    assert tool.main(["--pipeline", str(pipelines / "sd"), "--images", str(images), "--out", str(out), "--resolution", "16",
                      "--held-out", "2", "--validation", "2"]) == 4


def test_no_readable_picture(pipelines, images, tmp_path, capsys):
    for path in images.glob("*.png"):
        path.write_text("")
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "none of 12 pictures")


# ---- copies and splits ---------------------------------------------------------------------------------------------------


def copies(folder):
    """12 pictures, of which 00, 10 and 11 are one (resized, compressed), and 01 and 02 have one caption."""
    tiny_pipeline.pictures(folder, 12)
    big = Image.open(folder / "00.png").resize((96, 64), Image.Resampling.BICUBIC)
    big.save(folder / "10.jpg", quality=60)
    big.resize((60, 40)).save(folder / "11.png")
    captions = {f"{i:02}.png": f"a cat number {i}" for i in range(10)}
    captions.update({"10.jpg": "another", "11.png": "yet another", "02.png": " A  CAT number 1"})
    (folder / "10.png").unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": c}) + "\n" for n, c in captions.items()))
    return folder


@pytest.mark.parametrize("by, together", [
    ("image", [{"00.png", "10.jpg", "11.png"}]),
    ("caption", [{"01.png", "02.png"}]),
    ("both", [{"00.png", "10.jpg", "11.png"}, {"01.png", "02.png"}]),
])
def test_copies_share_a_group(pipelines, tmp_path, capsys, by, together):
    out = prepare(pipelines / "sd", copies(tmp_path / "images"), tmp_path / "out", "--group-by", by)
    groups = {}
    for part in ("train", "held_out", "validation"):
        data = read(out / f"{part}.h5")
        for name, group in zip(data["file_name"], data["group_id"]):
            groups.setdefault(int(group), set()).add((part, name))
    assert all(len({part for part, _ in group}) == 1 for group in groups.values()), "a group is in two files"
    found = [{name for _, name in group} for group in groups.values() if len(group) > 1]
    assert sorted(map(sorted, found)) == sorted(map(sorted, together))
    assert f"{sum(map(len, together))} are copies in {len(together)} groups" in capsys.readouterr().out


def test_near_pairs_are_all_that_there_are():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.int64).astype(np.uint64)
    flips = [sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 12), replace=False)) for _ in range(240)]
    hashes = np.unique(np.concatenate([base, np.repeat(base, 4) ^ np.array(flips, np.uint64)]))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    for distance in (0, 1, 6, 10):
        want = {(i, j) for i, j in zip(*np.nonzero(apart <= distance)) if i < j}
        found = {tuple(sorted(pair)) for pair in prepare_plan.near_pairs(hashes, distance).tolist()}
        assert found == want and (distance == 0) == (not want)


def test_split_prefers_single_pictures_and_keeps_groups_whole():
    groups = np.repeat(np.arange(40), [5] * 20 + [1] * 20)
    names = [f"{i}.png" for i in range(len(groups))]
    parts = prepare_plan.split(groups, names, 8, 8, 1)
    assert [len(parts[name]) for name in ("train", "held_out", "validation")] == [104, 8, 8]
    assert groups[parts["held_out"]].min() >= 20 and groups[parts["validation"]].min() >= 20
    more = prepare_plan.split(groups, names, 24, 8, 1)
    assert not set(groups[more["held_out"]]) & set(groups[more["train"]]) and len(more["held_out"]) >= 24
    other = prepare_plan.split(groups, names, 8, 8, 2)
    assert set(other["held_out"]) != set(parts["held_out"])
    # A picture that comes in addition moves no other.
    grown = prepare_plan.split(np.append(groups, 40), names + ["new.png"], 8, 8, 1)
    assert len(set(grown["held_out"]) - set(parts["held_out"])) <= 1


def test_too_much_put_aside(pipelines, images, tmp_path, capsys):
    prepare(pipelines / "sd", images, tmp_path / "out", "--held-out", 5, code=2)
    refused(capsys, 2, "more than half of the 12", "--held-out")


# ---- what people have in their folders -----------------------------------------------------------------------------------


def write_metadata(images, lines, mark=""):
    (images / "metadata.jsonl").write_text(mark + "".join(json.dumps(line) + "\n" for line in lines))


def metadata(images):
    return [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(images, kind):
    lines = metadata(images)
    write_metadata(images, lines, "\ufeff")
    if kind != "jsonl":
        (images / "metadata.jsonl").unlink()
    if kind == "csv":
        (images / "metadata.csv").write_text("\ufefffile_name,text\n" + "".join(f"{e['file_name']},{e['text']}\n" for e in lines))
    if kind == "txt":
        for entry in lines:
            (images / entry["file_name"]).with_suffix(".txt").write_text("\ufeff" + entry["text"])
    assert {s.name: s.caption for s in prepare_pictures.find(images)} == {e["file_name"]: e["text"] for e in lines}


def test_captions_that_are_none_or_cannot_be_stored_are_skipped_and_listed(pipelines, images, tmp_path, capsys):
    lines = metadata(images)
    lines[0]["text"], lines[1]["text"], lines[2]["text"], lines[3]["text"] = None, "  ", "a \0 cat", "a \ud83d cat"
    write_metadata(images, lines)
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert skipped(out) == {"00.png": "no caption", "01.png": "no caption", "02.png": "its caption holds a NUL or half a character",
                            "03.png": "its caption holds a NUL or half a character"}
    assert sum(len(read(out / f"{part}.h5")["caption"]) for part in ("train", "held_out", "validation")) == 8


def test_a_column_that_no_line_has(pipelines, images, tmp_path, capsys):
    prepare(pipelines / "sd", images, tmp_path / "out", "--caption-column", "label", code=3)
    refused(capsys, 3, "metadata.jsonl", "no line has a 'label'", "--caption-column")


def test_a_text_file_of_another_encoding_is_skipped_and_named(pipelines, images, tmp_path, capsys):
    for entry in metadata(images):
        (images / entry["file_name"]).with_suffix(".txt").write_text(entry["text"])
    (images / "metadata.jsonl").unlink()
    (images / "05.txt").write_bytes("Käse".encode("latin-1"))
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert skipped(out) == {"05.png": "05.txt is not UTF-8"}


def test_a_csv_that_is_none(pipelines, images, tmp_path, capsys):
    (images / "metadata.jsonl").unlink()
    (images / "metadata.csv").write_text("file_name,text\n00.png," + "x" * 200000 + "\n")
    prepare(pipelines / "sd", images, tmp_path / "out", code=3)
    refused(capsys, 3, "metadata.csv", "is not CSV")


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_greyscale_of_more_than_8_bits_is_skipped(pipelines, images, tmp_path, dtype, mode, capsys):
    ramp = np.linspace(0, 1 if dtype == np.float32 else 65535, 32 * 32).reshape(32, 32).astype(dtype)
    lines = metadata(images)
    lines[4]["file_name"] = "deep.tif"
    Image.fromarray(ramp).save(images / "deep.tif")
    assert Image.open(images / "deep.tif").mode == mode
    write_metadata(images, lines)
    out = prepare(pipelines / "sd", images, tmp_path / "out", code=4)
    assert "more than 8 bits" in skipped(out)["deep.tif"]


def test_large_groups_of_copies_do_not_swallow_the_training_set():
    names = [f"{i}" for i in range(1040)]
    groups = np.concatenate([np.arange(100), np.repeat(np.arange(100, 120), 2), np.repeat([120], 200), np.repeat([121], 700)])
    for seed in range(5):
        parts = prepare_plan.split(groups, names, 64, 64, seed)
        assert [len(parts[name]) for name in ("held_out", "validation", "train")] == [64, 64, 912]
    for one in (np.zeros(1040, int), np.repeat([0, 1], [700, 340])):
        with pytest.raises(prepare_pictures.OptionError, match="left to train on; lower --held-out"):
            prepare_plan.split(one, names, 64, 64, 0)
