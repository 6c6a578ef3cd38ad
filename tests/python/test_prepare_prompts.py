"""memsieve prompts: every kind of file, tokens, variants, and what is refused."""
import json

import h5py
import numpy as np
import pytest
import tiny_pipeline
import torch
from memsieve.commands import prepare_dataset
from memsieve.commands import prepare_prompts as tool
from memsieve.prepare import prompts
from prepared import pipelines, read  # noqa: F401


def make(pipeline, source, out, *more, code=0):
    words = ["--prompts", source, "--pipeline", pipeline, "--resolution", 16, "--device", "cpu", "--out", out, *more]
    assert tool.main([str(word) for word in words]) == code
    return read(out) if code == 0 else None


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_every_kind_of_file_gives_its_prompts(tmp_path):
    wanted = ["a cat", "a dog, of course"]
    lines = write(tmp_path / "a.txt", "\ufeffa cat\n\n  a dog, of course \n")
    assert prompts.read(lines) == wanted
    records = [{"caption": text, "index": i, "url": "u"} for i, text in enumerate(wanted)]
    assert prompts.read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))) == wanted
    membench = 'index,prompt,urls\n0,a cat,"[\'u\', \'v\']"\n1,"a dog, of course",[]\n'
    assert prompts.read(write(tmp_path / "SD1_final.csv", membench)) == wanted
    assert prompts.read(write(tmp_path / "b.csv", "Caption;Type\na cat;VM\na dog, of course;TM\n")) == wanted
    annotations = [{"id": 7, "image_id": 2, "caption": "a dog, of course"}, {"id": 9, "image_id": 1, "caption": "later"},
                   {"id": 3, "image_id": 1, "caption": "a cat"}]
    coco = write(tmp_path / "captions_val2017.json", json.dumps({"images": [], "annotations": annotations}))
    assert prompts.read(coco) == wanted
    assert prompts.read(write(tmp_path / "odd", '{"mine": "x"}\n'), "jsonl", "mine") == ["x"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_what_ends_a_line_elsewhere_is_part_of_a_caption(tmp_path, end):
    wanted = [f"a{end}cat", "a dog"]
    records = [json.dumps({"caption": text}, ensure_ascii=end < " ") for text in wanted]
    assert prompts.read(write(tmp_path / "a.txt", "\n".join(wanted))) == wanted
    assert prompts.read(write(tmp_path / "a.jsonl", "\n".join(records))) == wanted
    assert prompts.read(write(tmp_path / "a.csv", f"prompt\n{wanted[0]}\n{wanted[1]}\n")) == wanted
    assert prompts.read(write(tmp_path / "b.csv", f'caption;kind\n"{wanted[0]}";x\n{wanted[1]};y\n')) == wanted
    assert prepare_dataset.read_prompts(write(tmp_path / "c.txt", "\n".join(wanted))) == wanted
    wordings = write(tmp_path / "r.jsonl", json.dumps({"prompt": wanted[0], "rephrased": [f"x{end}y"]}, ensure_ascii=end < " ") + "\n")
    assert [v.caption for v in prompts.rephrased_of(wanted, wordings)] == [f"x{end}y"]


def test_a_quoted_line_end_in_a_table_is_kept(tmp_path):
    assert prompts.read(write(tmp_path / "a.csv", 'prompt\n"a\ncat"\n')) == ["a\ncat"]


@pytest.mark.parametrize("name, text, words", [
    ("a.txt", "\n \n", ["holds no prompt"]),
    ("a.jsonl", '{"caption": "x"}\n{"caption": 3}\n', [":2", "not text"]),
    ("a.jsonl", "{", [":1", "not JSON"]),
    ("a.jsonl", '{"mine": "x"}', ["--column", "mine"]),
    ("a.csv", "one,two\n1,2\n", ["--column", "one, two"]),
    ("a.json", "[]", ["COCO"]),
    ("a.pdf", "x", ["--format"]),
    ("a.txt", "a\0b\n", ["NUL"]),
])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys, pipelines, name, text, words):
    make(pipelines / "sd", write(tmp_path / name, text), tmp_path / "out.h5", code=3)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and name in said[0] and all(word in said[0] for word in words), said
    assert not (tmp_path / "out.h5").exists()


def test_states_and_tokens_are_those_of_the_pipeline(pipelines, tmp_path):
    captions = ["a cat", "the dog is a cat of the dog"]
    found = make(pipelines / "sd", write(tmp_path / "a.txt", "\n".join(captions)), tmp_path / "out.h5")
    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained(pipelines / "sd", safety_checker=None, feature_extractor=None)
    with torch.no_grad():
        states, null = pipeline.encode_prompt(captions, torch.device("cpu"), 1, True)
    assert np.allclose(found["text"], states.numpy(), atol=2e-3) and np.allclose(found["null_text"], null[0].numpy(), atol=2e-3)
    length = tiny_pipeline.TOKENS
    tokens = np.array(found["token"]).reshape(2, length)
    assert list(tokens[0][:3]) == ["<|startoftext|>", "a ", "cat "] and list(found["end_token"])[0] == 3
    assert found["caption"] == captions and len(found["encoder"]) == 1
    # The second is too long: its last place is the end token, and the words are the beginning of the caption.
    assert found["end_token"][1] == length - 1
    assert captions[1].startswith("".join(tokens[1][1:length - 1]).strip())
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["latents"].shape == (2, 4, 8, 8) and file["latents"].id.get_storage_size() == 0


def test_of_sdxl_it_has_pooled_text_and_time_ids(pipelines, tmp_path):
    found = make(pipelines / "xl", write(tmp_path / "a.txt", "a cat\n"), tmp_path / "out.h5")
    assert found["pooled"].shape[0] == 1 and found["null_pooled"].ndim == 1
    assert found["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]


def test_variants_follow_from_the_seed(pipelines, tmp_path):
    source = write(tmp_path / "a.txt", "a red cat\ndog\n")
    more = ["--random-tokens", 3, "--random-variants", 2, "--leave-out"]
    found = [make(pipelines / "sd", source, tmp_path / f"{i}.h5", *more, "--seed", seed) for i, seed in enumerate((1, 1, 2))]
    assert found[0]["caption"] == found[1]["caption"] != found[2]["caption"]
    rows = list(zip(found[0]["variant_of"].tolist(), found[0]["variant"], found[0]["caption"]))
    assert [row[:2] for row in rows[:2]] == [(-1, ""), (-1, "")]
    left_out = {kind: caption for of, kind, caption in rows if of == 0 and kind.startswith("without ")}
    assert left_out == {"without a": "red cat", "without red": "a cat", "without cat": "a red"}
    assert not [row for row in rows if row[0] == 1 and row[1].startswith("without ")]
    for of, kind, caption in rows:
        if kind == "random tokens":
            words = iter(caption.split(" "))
            assert all(word in words for word in rows[of][2].split(" "))
            assert len(caption.split(" ")) >= len(rows[of][2].split(" ")) + 3


def test_other_wordings_stand_behind_their_prompts(pipelines, tmp_path, capsys):
    source = write(tmp_path / "a.txt", "a red cat\ndog\n")
    wordings = write(tmp_path / "w.jsonl", json.dumps({"prompt": "dog", "rephrased": ["a dog", "one dog"]}) + "\n")
    found = make(pipelines / "sd", source, tmp_path / "o.h5", "--rephrased", wordings)
    rows = list(zip(found["variant_of"].tolist(), found["variant"], found["caption"]))
    assert rows[2:] == [(1, "rephrased", "a dog"), (1, "rephrased", "one dog")]
    for line, words in (('{"prompt": "cat", "rephrased": ["x"]}', ["'cat'", "none of the prompts"]), ('{"prompt": "dog"}', ["must be"]),
                        ('{"prompt": "dog", "rephrased": [3]}', ["must be"]), ("", ["holds no wording"])):
        make(pipelines / "sd", source, tmp_path / "x.h5", "--rephrased", write(tmp_path / "w.jsonl", line + "\n"), code=3)
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "w.jsonl" in said[0] and all(word in said[0] for word in words), said


def test_options_out_of_range_are_refused(pipelines, tmp_path, capsys):
    source = write(tmp_path / "a.txt", "a cat\n")
    with pytest.raises(SystemExit):
        make(pipelines / "sd", source, tmp_path / "o.h5", "--random-tokens", 1000)
    make(pipelines / "sd", source, tmp_path / "o.h5", "--resolution", 17, code=2)
    assert "--resolution 17" in capsys.readouterr().err


def test_a_folder_that_is_no_clip_model_is_said_in_one_line(pipelines, tmp_path, capsys):
    source = write(tmp_path / "a.txt", "a cat\n")
    for folder in (tmp_path / "nowhere", pipelines / "sd" / "unet"):
        make(pipelines / "sd", source, tmp_path / "out.h5", "--clip", folder, code=3)
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and str(folder) in said[0], said
    assert not (tmp_path / "out.h5").exists()
