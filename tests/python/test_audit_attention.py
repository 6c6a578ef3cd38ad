"""memsieve-audit detect: scores of the attention to text, against plain arithmetic in diffusers' UNet, written from the papers."""
import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, NEGATIVES, PICTURES, PROMPTS, Drawer, Found
from audited import epsilon_world, world  # noqa: F401
from conftest import run_ok
from diffusers.models.attention_processor import Attention

STEPS, LATE, FOURTH = 12, 10, 3


class Looks:
    """diffusers' attention to text with plain arithmetic, which keeps the probabilities of the captioned row."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __call__(self, attention: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda x: x.unflatten(2, (attention.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(attention.to_q(hidden_states)), split(attention.to_k(context)), split(attention.to_v(context))
        weights = (q @ k.transpose(2, 3) * q.shape[3]**-0.5).softmax(3)
        if encoder_hidden_states is not None:
            self.seen.append((self.name, weights[1].mean(0)))  # [pixels, tokens]
        return attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def entropy(p):
    return float(-(p * p.log()).sum())


def expected(drawer, prompt, picture):
    seen, entropies, ends, differences, first = [], [], [], [], []
    end = int(drawer.end_token[prompt])
    drawer.unet.set_attn_processor({name: Looks(name, seen) for name in drawer.unet.attn_processors})

    def guide(number, null, captioned):
        p = torch.stack([look.mean(0) for _, look in seen]).mean(0)
        entropies.append(entropy(p))
        ends.append(entropy(p[end:]))
        differences.append(captioned - null)
        first.append(entropy(seen[FOURTH][1].mean(0)))
        if number < STEPS - 1:
            seen.clear()
        return null + GUIDANCE * (captioned - null)

    drawer.draw(prompt, picture, drawer.text[prompt], guide)
    down = [look for name, look in seen if name.startswith("down_blocks.0.")]
    mask = torch.stack(down).mean(0)[:, end].reshape(1, 1, 8, 8)
    return {"entropy": entropies, "end_entropy": ends, "attention_entropy_first": first[0],
            "attention_entropy": np.mean(entropies[-LATE:]) + np.mean(ends[-LATE:]) - ends[0],
            "masked_magnitude": [((d * mask).norm() / mask.mean()).item() for d in differences]}


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return world.audit("detect", tmp_path_factory.mktemp("attention") / "out", "--negatives", world.negatives, "--set",
                       f"num_inference_steps={STEPS}", "--cosine", "false")


def test_scores_of_the_attention_are_those_of_python(world, found):
    drawer = Drawer(world)
    drawer.scheduler.set_timesteps(STEPS)
    for prompt in range(len(PROMPTS)):
        for picture in range(PICTURES):
            row = found.rows[f"prompts/{prompt}/{picture}"]
            for name, value in expected(drawer, prompt, picture).items():
                assert row[name] == pytest.approx(value, rel=1e-4), name
    for name, key in (("attention_entropy", "attention_entropy"), ("attention_entropy_first", "attention_entropy_first"),
                      ("bright_ending", "masked_magnitude")):
        means = [np.mean([found.rows[f"prompts/{prompt}/{i}"][key] for i in range(PICTURES)]) for prompt in range(len(PROMPTS))]
        assert [prompt[name] for prompt in found.summary["prompts"]] == pytest.approx(means)
        score = found.summary["scores"][name]
        assert score["positives"] == len(PROMPTS) and score["negatives"] == len(NEGATIVES) and 0 <= score["auc"]["estimate"] <= 1
        assert all(0 < prompt["p_value"][name] <= 1 for prompt in found.summary["prompts"])
        assert name in (found.out / "page.html").read_text()


def test_looking_changes_nothing_and_the_first_step_tells_what_it_can(epsilon_world, tmp_path):
    looked = epsilon_world.audit("detect", tmp_path / "looked")
    blind = epsilon_world.audit("detect", tmp_path / "blind", "--attention", "false")
    first = epsilon_world.audit("detect", tmp_path / "first", "--first-steps", 1)
    for unit, row in blind.rows.items():
        assert "entropy" not in row and row.items() <= looked.rows[unit].items()
        short = first.rows[unit]
        assert short["entropy"] == pytest.approx(looked.rows[unit]["entropy"][:1])
        assert short["attention_entropy_first"] == pytest.approx(looked.rows[unit]["attention_entropy_first"])
        assert "attention_entropy" not in short and "masked_magnitude" not in short
    assert "bright_ending" in looked.summary["scores"] and "bright_ending" not in first.summary["scores"]
    assert not any("entropy" in name for name in blind.summary["scores"])


def test_prompts_without_tokens_are_measured_without_them(epsilon_world, tmp_path):
    bare = tmp_path / "bare.h5"
    bare.write_bytes(epsilon_world.negatives.read_bytes())
    with h5py.File(bare, "a") as file:
        for name in ("token_bytes", "token_offsets", "end_token"):
            del file[name]
    command = epsilon_world.command("detect", tmp_path / "out", "--first-steps", 1)
    command[command.index("--prompts") + 1] = bare
    run_ok(*command)
    assert "attention_entropy_first" not in Found(tmp_path / "out").summary["scores"]
