"""memsieve-audit mitigate: each method against a second implementation in Python, written from its description."""
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, PICTURES, PROMPTS, Drawer, Found, prepare
from audited import epsilon_world, world  # noqa: F401
from conftest import assert_refused, run, run_ok
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from memsieve.commands import audit_page

METHODS = ("dynamic_guidance", "embedding", "random_tokens", "attention", "rephrased")
TARGET_SHARE, RATE, UPDATES = 0.6, 0.02, 6
DRAWINGS = [(prompt, picture) for prompt in range(len(PROMPTS)) for picture in range(PICTURES)]


@pytest.fixture(scope="module")
def drawer(world):
    return Drawer(world)


@pytest.fixture(scope="module")
def target(drawer):
    """A level that some pictures reach within the updates, and some do not."""
    return TARGET_SHARE * float(np.median([drawer.magnitudes(*drawing)[0] for drawing in DRAWINGS]))


@pytest.fixture(scope="module")
def levels(drawer):
    """(rephrased_target, repulsion_from, repulsion_full) between which the magnitudes of the tiny model lie."""
    first = sorted(drawer.magnitudes(*drawing)[0] for drawing in DRAWINGS)
    every = np.concatenate([drawer.magnitudes(*drawing) for drawing in DRAWINGS])
    return float(np.mean(first[:2])), float(np.quantile(every, 0.1)), float(np.quantile(every, 0.3))


@pytest.fixture(scope="module")
def found(world, target, levels, tmp_path_factory):
    methods = [word for method in METHODS for word in ("--methods", method)]
    methods += [word for pair in zip(("--rephrased-target", "--repulsion-from", "--repulsion-full"), (f"{x:.9g}" for x in levels))
                for word in pair]
    return world.audit("mitigate", tmp_path_factory.mktemp("mitigate") / "out", *methods, "--target", f"{target:.9g}",
                       "--learning-rate", RATE, "--updates", UPDATES)


def row_of(found, method, prompt, picture):
    return found.rows[f"{method}/{prompt}/{picture}"]


def test_without_a_method_it_is_plain_drawing(drawer, found):
    for drawing in DRAWINGS:
        assert row_of(found, "none", *drawing)["magnitude"] == pytest.approx(drawer.magnitudes(*drawing), rel=1e-5, abs=1e-6)


def test_dynamic_guidance_begins_at_the_first_local_minimum(drawer, found):
    begun = []
    for prompt, picture in DRAWINGS:
        magnitudes, state = [], {"on": None}

        def guide(number, null, captioned):
            magnitudes.append((captioned - null).norm().item())
            if state["on"] is None and len(magnitudes) > 2 and magnitudes[-3] > magnitudes[-2] < magnitudes[-1]:
                state["on"] = number
            return null + (1 if state["on"] is None else GUIDANCE) * (captioned - null)

        drawer.draw(prompt, picture, drawer.text[prompt], guide)
        row = row_of(found, "dynamic_guidance", prompt, picture)
        assert row["magnitude"] == pytest.approx(magnitudes, rel=1e-4, abs=1e-5)
        assert row["guided_from"] == state["on"]
        begun.append(state["on"])
    # Of the two pipelines at least this one has pictures with a minimum and without.
    if drawer.scheduler.config.prediction_type == "epsilon":
        assert None in begun and len(set(begun)) > 1


def moved(drawer, prompt, picture, target):
    """(states, losses) of one picture: AdamW on all tokens but the first."""
    first, rest = drawer.text[prompt][:1], drawer.text[prompt][1:].clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([rest], lr=RATE, weight_decay=0.01)
    x, t, losses = drawer.noise(prompt, picture), drawer.scheduler.timesteps[0], []
    for _ in range(UPDATES):
        null, captioned = drawer.predict(x, t, torch.cat([first, rest]))
        loss = (captioned - null).norm()
        losses.append(loss.item())
        if loss <= target:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([first, rest]).detach(), losses


def test_moved_states_follow_the_same_path(drawer, found, target):
    lengths = []
    for prompt, picture in DRAWINGS:
        states, losses = moved(drawer, prompt, picture, target)
        row = row_of(found, "embedding", prompt, picture)
        assert row["losses"] == pytest.approx(losses, rel=1e-4)
        assert row["magnitude"] == pytest.approx(drawer.magnitudes(prompt, picture, states), rel=1e-3, abs=1e-4)
        lengths.append(len(losses))
    assert min(lengths) < UPDATES == max(lengths)


def test_random_tokens_are_drawn_from_the_prepared_variants(drawer, found):
    for prompt, picture in DRAWINGS:
        variants = [i for i, (of, kind) in enumerate(zip(drawer.variant_of, drawer.variant))
                    if of == prompt and kind == "random tokens"]
        variant = variants[picture % len(variants)]
        words = drawer.captions[variant].split()
        kept = iter(words)
        assert len(words) >= len(PROMPTS[prompt].split()) + 2 and all(word in kept for word in PROMPTS[prompt].split())
        row = row_of(found, "random_tokens", prompt, picture)
        assert row["caption"] == drawer.captions[variant]
        assert row["magnitude"] == pytest.approx(drawer.magnitudes(prompt, picture, drawer.text[variant]), rel=1e-5, abs=1e-6)


class EditedAttention:
    """diffusers' attention to text with plain arithmetic: logits of the first token scaled in the captioned row, none behind the
    end token seen in either."""

    def __init__(self, end, scale):
        self.end, self.scale = end, scale

    def __call__(self, attention: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if crosses else hidden_states
        heads = attention.heads
        split = lambda x: x.unflatten(2, (heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = split(attention.to_q(hidden_states)), split(attention.to_k(context)), split(attention.to_v(context))
        logits = q @ k.transpose(2, 3) * q.shape[3]**-0.5
        if crosses:
            logits[1, :, :, 0] *= self.scale
            logits[:, :, :, self.end + 1:] = -torch.inf
        mixed = (logits.softmax(3) @ v).transpose(1, 2).flatten(2)
        return attention.to_out[0](mixed)


def test_edited_attention_is_that_of_plain_arithmetic(drawer, found, world):
    edited = Drawer(world)
    for prompt, picture in DRAWINGS:
        edited.unet.set_attn_processor(EditedAttention(int(drawer.end_token[prompt]), 1.25))
        expected = edited.magnitudes(prompt, picture)
        assert row_of(found, "attention", prompt, picture)["magnitude"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert expected != pytest.approx(drawer.magnitudes(prompt, picture), rel=1e-4)


def rephrased(drawer, prompt, picture, levels):
    """(wording or None, magnitude of each step), from the method's description."""
    target, low, high = levels
    first = lambda text: drawer.magnitudes(prompt, picture, text)[0]  # noqa: E731
    chosen, plain = None, drawer.text[prompt]
    if first(plain) > target:
        rows = [i for i, (of, kind) in enumerate(zip(drawer.variant_of, drawer.variant)) if of == prompt and kind == "rephrased"]
        values = [first(drawer.text[row]) for row in rows]
        fine = [row for row, value in zip(rows, values) if value <= target]
        chosen = fine[0] if fine else rows[int(np.argmin(values))]
    kappa = (low * GUIDANCE - high) / (GUIDANCE - 1)
    x, seen, cases = drawer.noise(prompt, picture), [], set()
    for t in drawer.scheduler.timesteps:
        with torch.no_grad():
            null, wording = drawer.predict(x, t, plain if chosen is None else drawer.text[chosen])
            own = drawer.predict(x, t, plain)[1]
        m = (wording - null).norm().item()
        seen.append(m)
        guided = null + GUIDANCE * (wording - null)
        if chosen is not None and m > low:
            part = min(GUIDANCE, GUIDANCE * (m - kappa) / (high - kappa))
            guided = own + part * (wording - own) + (GUIDANCE - part) * (wording - null)
        cases.add("plain" if chosen is None else "weak" if m <= low else "between" if m < high else "full")
        x = drawer.scheduler.step(guided, t, x, eta=0).prev_sample
    return chosen, seen, cases


def test_rephrased_prompts_are_drawn_away_from_the_prompt(drawer, found, levels):
    cases = set()
    for prompt, picture in DRAWINGS:
        wording, magnitudes, met = rephrased(drawer, prompt, picture, levels)
        row = row_of(found, "rephrased", prompt, picture)
        assert row["caption"] == (None if wording is None else drawer.captions[wording])
        assert row["magnitude"] == pytest.approx(magnitudes, rel=1e-4, abs=1e-5)
        cases |= met
    assert cases == {"plain", "weak", "between", "full"}


def test_the_summary_compares_the_methods(found):
    assert [entry["method"] for entry in found.summary["methods"]] == ["none", *METHODS]
    for entry in found.summary["methods"]:
        rows = [row_of(found, entry["method"], *drawing) for drawing in DRAWINGS]
        assert entry["magnitude_first"]["estimate"] == pytest.approx(np.mean([row["magnitude"][0] for row in rows]))
        assert entry["similarity_to_plain"]["estimate"] == pytest.approx(np.mean([row["similarity_to_plain"] for row in rows]))
    assert found.summary["methods"][0]["similarity_to_plain"]["estimate"] == pytest.approx(1, abs=1e-5)
    assert all(method in (found.out / "page.html").read_text() for method in METHODS)


def test_without_a_vae_latents_are_compared(epsilon_world, tmp_path):
    bare, pictures = tmp_path / "bare", tmp_path / "pictures.h5"
    for part in ("unet", "scheduler"):
        shutil.copytree(epsilon_world.pipeline / part, bare / part)
    shutil.copy(epsilon_world.prompts, pictures)
    with h5py.File(pictures, "a") as file:
        latents = np.random.default_rng(0).standard_normal((len(PROMPTS), *file["latents"].shape[1:])).astype(np.float16)
        file["latents"][:len(PROMPTS)] = latents
        scale = file["latents"].attrs["scaling_factor"]
    command = epsilon_world.command("mitigate", tmp_path / "out", "--methods", "dynamic_guidance")
    command[command.index("--model") + 1], command[command.index("--prompts") + 1] = bare, pictures
    run_ok(*command)
    found, drawer = Found(tmp_path / "out"), Drawer(epsilon_world)
    for prompt, picture in DRAWINGS:
        drawn = drawer.draw(prompt, picture, drawer.text[prompt], lambda _, null, captioned: null + GUIDANCE * (captioned - null))
        expected = np.corrcoef(drawn.numpy().ravel(), scale * latents[prompt].astype(np.float64).ravel())[0, 1]
        assert row_of(found, "none", prompt, picture)["similarity"] == pytest.approx(expected, abs=2e-3)
    assert found.summary["similarity"] == "latents" and "copies" in found.summary["methods"][0]
    # Nor with pixels, or with those of another VAE, in the same folder.
    assert_refused(run(*command, "--vae", epsilon_world.pipeline / "vae"), 2, "measurements.jsonl", "another comparison", "latents")
    command[command.index("--out") + 1] = tmp_path / "pixels"
    run_ok(*command, "--vae", epsilon_world.pipeline / "vae")
    shutil.copytree(epsilon_world.pipeline / "vae", tmp_path / "moved")
    run_ok(*command, "--vae", tmp_path / "moved")
    vae = AutoencoderKL.from_pretrained(tmp_path / "moved")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.25)
    vae.save_pretrained(tmp_path / "moved")
    assert_refused(run(*command, "--vae", tmp_path / "moved"), 2, "measurements.jsonl", "another comparison", "pixels")


def test_a_caption_may_hold_what_ends_a_line_elsewhere(epsilon_world, tmp_path):
    caption = "a\u2028cat"
    command = epsilon_world.command("mitigate", tmp_path / "out", "--methods", "random_tokens", "--set", "num_inference_steps=2")
    command[command.index("--prompts") + 1] = prepare(epsilon_world.pipeline, [caption], tmp_path / "odd.h5", "--random-tokens", 1)
    run_ok(*command)
    found = Found(tmp_path / "out")
    assert any(caption in json.dumps(row, ensure_ascii=False) for row in found.rows.values())
    (tmp_path / "out" / "page.html").unlink(missing_ok=True)
    assert audit_page.main([str(tmp_path / "out")]) == 0
    assert "cat" in (tmp_path / "out" / "page.html").read_text()


def test_what_is_missing_is_said(epsilon_world, tmp_path):
    assert_refused(epsilon_world.refuse("mitigate", tmp_path / "a", "--methods", "magic"), 2, "magic", "dynamic_guidance")
    for method, more, words in (("rephrased", ("--set", "guidance_scale=1"), ("guidance_scale", "more than 1")),
                                ("rephrased", ("--repulsion-full", 2), ("repulsion_full", "is 2", "repulsion_from, 3"))):
        refused = epsilon_world.refuse("mitigate", tmp_path / "a", "--methods", method, *more)
        assert_refused(refused, 2, *words)
        assert not (tmp_path / "a").exists()
    bare = tmp_path / "bare.h5"
    bare.write_bytes(epsilon_world.prompts.read_bytes())
    with h5py.File(bare, "a") as file:
        for name in ("variant_of", "variant_bytes", "variant_offsets", "end_token"):
            del file[name]
    for method, word in (("random_tokens", "--random-tokens"), ("attention", "/end_token"), ("rephrased", "--rephrased")):
        command = epsilon_world.command("mitigate", tmp_path / method, "--methods", method)
        command[command.index("--prompts") + 1] = bare
        assert_refused(run(*command), 3, "bare.h5", word)
