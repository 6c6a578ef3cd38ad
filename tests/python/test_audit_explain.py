"""memsieve-audit explain: the gradient of the magnitude by token, against autograd in Python."""
import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, PICTURES, PROMPTS, Drawer
from audited import epsilon_world, world  # noqa: F401
from conftest import assert_refused, run

STEPS_TAKEN = 3


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return world.audit("explain", tmp_path_factory.mktemp("explain") / "out", "--first-steps", STEPS_TAKEN, "--without", "cat")


def gradients(drawer, prompt, picture):
    """[steps][tokens]: norms of the gradient at the first steps of a drawing that is guided towards the prompt."""
    x, found = drawer.noise(prompt, picture), []
    for t in drawer.scheduler.timesteps[:STEPS_TAKEN]:
        text = drawer.text[prompt].clone().requires_grad_(True)
        null, captioned = drawer.predict(x, t, text)
        (captioned - null.detach()).norm().backward()
        found.append(text.grad.norm(dim=1))
        with torch.no_grad():
            x = drawer.scheduler.step(null + GUIDANCE * (captioned - null), t, x, eta=0).prev_sample
    return torch.stack(found)


def test_gradients_by_token_are_those_of_autograd(world, found):
    drawer = Drawer(world)
    for prompt in range(len(PROMPTS)):
        for picture in range(PICTURES):
            expected = gradients(drawer, prompt, picture)
            row = found.rows[f"prompts/{prompt}/{picture}"]
            assert np.array(row["gradient"]) == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4 * expected.max().item())
            magnitudes = drawer.magnitudes(prompt, picture)[:STEPS_TAKEN]
            assert row["magnitude"] == pytest.approx(magnitudes, rel=1e-5, abs=1e-6)


def test_the_summary_names_the_words_and_leaves_out_what_is_none(world, found):
    drawer = Drawer(world)
    for prompt, entry in enumerate(found.summary["prompts"]):
        assert "".join(token["word"] for token in entry["tokens"]).replace(" ", "") == PROMPTS[prompt].replace(" ", "")
        assert [token["place"] for token in entry["tokens"]] == list(range(1, drawer.end_token[prompt]))
        rows = [found.rows[f"prompts/{prompt}/{i}"]["gradient"] for i in range(PICTURES)]
        mean = np.mean(rows, axis=(0, 1))
        assert [token["gradient"] for token in entry["tokens"]] == pytest.approx(mean[1:drawer.end_token[prompt]], rel=1e-9)


def test_without_a_word_the_magnitude_is_that_of_the_prompt_without_it(world, found):
    drawer = Drawer(world)
    told = {entry["prompt"]: entry["without"] for entry in found.summary["prompts"]}
    assert [prompt for prompt, without in told.items() if without] == [0, 2]
    for prompt in (0, 2):
        row = next(i for i, (of, kind) in enumerate(zip(drawer.variant_of, drawer.variant))
                   if of == prompt and kind == "without cat")
        assert drawer.captions[row] == PROMPTS[prompt].replace("cat", "").replace("  ", " ").strip()
        expected = np.mean([drawer.magnitudes(prompt, i, drawer.text[row])[0] for i in range(PICTURES)])
        assert told[prompt][0]["word"] == "cat"
        assert told[prompt][0]["magnitude_first"] == pytest.approx(expected, rel=1e-5)


def test_the_words_are_told_in_the_terminal_and_on_the_page(world, tmp_path):
    result = run(*world.command("explain", tmp_path / "out"))
    lines = result.stdout.splitlines()
    assert len(lines) == len(PROMPTS) and all("100%" in line for line in lines)
    assert all(prompt in (tmp_path / "out" / "page.html").read_text() for prompt in PROMPTS)


def test_what_a_file_holds_does_not_steer_the_terminal(epsilon_world, tmp_path):
    steering = tmp_path / "steering.h5"
    steering.write_bytes(epsilon_world.prompts.read_bytes())
    with h5py.File(steering, "a") as file:
        text = file["token_bytes"][:]
        text[text == ord("c")] = 27
        file["token_bytes"][:] = text
    command = epsilon_world.command("explain", tmp_path / "out")
    command[command.index("--prompts") + 1] = steering
    result = run(*command)
    assert result.returncode == 0 and "\x1b" not in result.stdout and "?" in result.stdout


def test_prompts_without_tokens_are_refused(epsilon_world, tmp_path):
    bare = tmp_path / "bare.h5"
    bare.write_bytes(epsilon_world.prompts.read_bytes())
    with h5py.File(bare, "a") as file:
        del file["end_token"]
    command = epsilon_world.command("explain", tmp_path / "out")
    command[command.index("--prompts") + 1] = bare
    assert_refused(run(*command), 3, "bare.h5", "/end_token", "explain", "memsieve prompts")


def test_a_word_that_no_prompt_has_is_refused(epsilon_world, tmp_path):
    assert_refused(epsilon_world.refuse("explain", tmp_path / "out", "--without", "horse"), 3, "horse", "--leave-out")
