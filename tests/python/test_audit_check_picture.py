"""memsieve-audit check-picture: errors, optimised states and drawings against Python, and what is said of a picture."""
import shutil

import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, NEGATIVES, PICTURES, PROGRAM, PROMPTS, SEED, STEPS, Drawer, Found
from audited import epsilon_world, world  # noqa: F401
from conftest import assert_refused, on_ranks, run, run_ok

import keyed_noise

DRAWS, UPDATES, BATCH, RATE = 5, 6, 3, 0.1
ERROR_NOISE, OPTIMISATION_NOISE, OPTIMISATION_TIMESTEP = 50, 51, 52
NUMBERS = ["--error-draws", DRAWS, "--optimisation-steps", UPDATES, "--optimisation-batch", BATCH, "--learning-rate", RATE]


def with_pictures(source, out, seed):
    """The prompts with latents of their own and without variants; returns the latents as the model sees them."""
    shutil.copy(source, out)
    with h5py.File(out, "a") as file:
        rows = int((file["variant_of"][:] < 0).sum()) if "variant_of" in file else len(file["text"])
        latents = np.random.default_rng(seed).standard_normal((len(file["text"]), *file["latents"].shape[1:])).astype(np.float32)
        latents = (latents * 5).astype(file["latents"].dtype)
        file["latents"][:] = latents
        return torch.tensor(latents[:rows].astype(np.float32)) * float(file["latents"].attrs["scaling_factor"])


class Case:
    def __init__(self, world, folder):
        self.world = world
        self.pictures, self.held_out = folder / "pictures.h5", folder / "held_out.h5"
        self.x0 = {"prompts": with_pictures(world.prompts, self.pictures, 1),
                   "held_out": with_pictures(world.negatives, self.held_out, 2)}
        with h5py.File(self.held_out) as file:
            self.held_out_text = torch.tensor(file["text"][:].astype(np.float32))

    def command(self, out, *more):
        return [PROGRAM, "check-picture", "--model", self.world.pipeline, "--prompts", self.pictures, "--out", out, "--device",
                "cpu", "--seed", SEED, "--num-images-per-prompt", PICTURES, "--num-inference-steps", STEPS, "--guidance-scale",
                GUIDANCE, *NUMBERS, *more]


@pytest.fixture(scope="module")
def case(world, tmp_path_factory):
    return Case(world, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def found(case, tmp_path_factory):
    out = tmp_path_factory.mktemp("check") / "out"
    run_ok(*case.command(out, "--held-out", case.held_out))
    return Found(out)


def target(scheduler, x0, noise, t):
    return noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x0, noise, t)


def optimised(drawer, x0, text, key):
    """(states, losses): DoRI's inner loop, from its description."""
    states = text.clone().requires_grad_(True)
    adam = torch.optim.Adam([states], lr=RATE)
    losses = []
    for step in range(UPDATES):
        rows = [(key, step * BATCH + i) for i in range(BATCH)]
        noise = torch.tensor(keyed_noise.normal(SEED, OPTIMISATION_NOISE, rows, x0.shape))
        t = torch.tensor([(keyed_noise.keyed_bits(SEED, OPTIMISATION_TIMESTEP, *row) >> 32) * 1000 >> 32 for row in rows])
        pictures = x0[None].expand_as(noise)
        answer = drawer.unet(drawer.scheduler.add_noise(pictures, noise, t), t, encoder_hidden_states=states[None].expand(
            BATCH, -1, -1)).sample
        loss = torch.nn.functional.mse_loss(answer, target(drawer.scheduler, pictures, noise, t))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return states.detach(), losses


def test_errors_are_those_of_python(case, found):
    drawer = Drawer(case.world)
    texts = {"prompts": drawer.text, "held_out": case.held_out_text}
    t = torch.tensor([(2 * i + 1) * 1000 // (2 * DRAWS) for i in range(DRAWS)])
    for name, x0s in case.x0.items():
        for row, x0 in enumerate(x0s):
            noise = torch.tensor(keyed_noise.normal(SEED, ERROR_NOISE, [(0, i) for i in range(DRAWS)], x0.shape))
            pictures = x0[None].expand_as(noise)
            with torch.no_grad():
                answer = drawer.unet(drawer.scheduler.add_noise(pictures, noise, t), t,
                                     encoder_hidden_states=texts[name][row][None].expand(DRAWS, -1, -1)).sample
            expected = (answer - target(drawer.scheduler, pictures, noise, t)).square().mean((1, 2, 3))
            told = found.rows[f"{name}/{row}/errors"]
            assert told["timesteps"] == t.tolist()
            assert told["errors"] == pytest.approx(expected.numpy(), rel=1e-4)


def test_optimised_states_have_the_losses_of_python(case, found):
    drawer = Drawer(case.world)
    texts = {"prompts": drawer.text, "held_out": case.held_out_text}
    for name, row in (("prompts", 0), ("prompts", 2), ("held_out", 1)):
        key = row if name == "prompts" else -1 - row
        _, losses = optimised(drawer, case.x0[name][row], texts[name][row], key)
        told = found.rows[f"{name}/{row}/drawings"]
        assert told["losses"] == pytest.approx(losses, rel=1e-4)
        assert len(told["optimised"]["similarity"]) == len(told["caption"]["similarity"]) == PICTURES


def test_without_a_vae_latents_are_compared(case, found, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(case.world.pipeline / "unet", bare / "unet")
    shutil.copytree(case.world.pipeline / "scheduler", bare / "scheduler")
    command = case.command(tmp_path / "out")
    command[command.index("--model") + 1] = bare
    run_ok(*command)
    compared = Found(tmp_path / "out")
    assert found.summary["similarity"] == "pixels" and compared.summary["similarity"] == "latents"
    drawer = Drawer(case.world)
    for row, x0 in enumerate(case.x0["prompts"]):
        states, _ = optimised(drawer, x0, drawer.text[row], row)
        for how, text in (("caption", drawer.text[row]), ("optimised", states)):
            told = compared.rows[f"prompts/{row}/drawings"][how]["similarity"]
            for picture in range(PICTURES):
                drawn = drawer.draw(row, picture, text, lambda _, null, captioned: null + GUIDANCE * (captioned - null))
                expected = np.corrcoef(drawn.numpy().ravel(), x0.numpy().ravel())[0, 1]
                assert told[picture] == pytest.approx(expected, abs=2e-3 if how == "optimised" else 1e-4)
    # The same numbers with and without a VAE until something is drawn.
    for unit in ("prompts/0/errors", "prompts/2/errors"):
        assert compared.rows[unit]["errors"] == found.rows[unit]["errors"]
    # Pixels are not put beside latents.
    assert_refused(run(*command, "--vae", case.world.pipeline / "vae"), 2, "measurements.jsonl", "another comparison", "latents", "pixels")
    assert Found(tmp_path / "out").text == compared.text


def test_what_is_said_follows_from_the_measurements(case, found):
    held_out = [found.rows[f"held_out/{i}/errors"]["errors"] for i in range(len(NEGATIVES))]
    held_out = np.log(held_out).mean(1)
    best = [max(found.rows[f"held_out/{i}/drawings"]["optimised"]["similarity"]) for i in range(len(NEGATIVES))]
    assert [p["prompt"] for p in found.summary["prompts"]] == list(range(len(PROMPTS)))
    for prompt in found.summary["prompts"]:
        row, drawn = prompt["prompt"], found.rows[f"prompts/{prompt['prompt']}/drawings"]
        error = np.log(found.rows[f"prompts/{row}/errors"]["errors"]).mean()
        assert prompt["log_error"] == pytest.approx(error, rel=1e-9)
        assert prompt["p_error"] == pytest.approx((1 + (held_out <= error).sum()) / (1 + len(NEGATIVES)))
        closest = max(drawn["optimised"]["similarity"])
        assert prompt["p_similarity"] == pytest.approx((1 + sum(b >= closest for b in best)) / (1 + len(NEGATIVES)))
        assert prompt["verdict"] == f"not shown by {2 * PICTURES} drawings"
        assert prompt["with_caption"]["copies"] == 0 and prompt["with_caption"]["share"]["high"] == pytest.approx(1 - 0.025**0.5)
    assert found.summary["copied"]["estimate"] == 0 and found.summary["held_out"]["drawn"] == len(NEGATIVES)


def test_a_picture_that_the_caption_draws_is_copied_and_the_page_shows_it(case, tmp_path):
    drawer = Drawer(case.world)
    pictures = tmp_path / "own.h5"
    shutil.copy(case.pictures, pictures)
    drawn = drawer.draw(1, 0, drawer.text[1], lambda _, null, captioned: null + GUIDANCE * (captioned - null))
    with h5py.File(pictures, "a") as file:
        file["latents"][1] = (drawn[0] / float(file["latents"].attrs["scaling_factor"])).numpy()
    command = case.command(tmp_path / "out", "--rows", 1, "--rows", 2, "--optimisation-steps", 0)
    command[command.index("--prompts") + 1] = pictures
    at = command.index("--optimisation-steps")
    del command[at:at + 2]
    said = run(*command)
    assert said.returncode == 0, said.stderr
    found = Found(tmp_path / "out")
    verdicts = {p["prompt"]: p["verdict"] for p in found.summary["prompts"]}
    assert verdicts == {1: "copied", 2: f"not shown by {PICTURES} drawings"}
    assert "optimised" not in found.rows["prompts/1/drawings"] and found.summary["with_optimised_states"] is None
    assert found.rows["prompts/1/drawings"]["caption"]["similarity"][0] > 0.99
    page = (tmp_path / "out" / "page.html").read_text()
    assert PROMPTS[1] in page and PROMPTS[0] not in page and "copied" in page and "<img src=\"data:image/png" in page


def test_any_number_of_ranks_and_any_batch_give_the_same(case, found, tmp_path):
    result = on_ranks(2, *case.command(tmp_path / "out", "--held-out", case.held_out))
    assert result.returncode == 0, result.stderr
    assert Found(tmp_path / "out").text == found.text
    run_ok(*case.command(tmp_path / "small", "--rows", 0, "--batch-size", 1))
    small = Found(tmp_path / "small").rows["prompts/0/drawings"]
    assert small["losses"] == pytest.approx(found.rows["prompts/0/drawings"]["losses"], rel=1e-4)


def test_the_empty_caption_to_start_from(case, found, tmp_path):
    run_ok(*case.command(tmp_path / "out", "--rows", 0, "--start", "empty"))
    drawer = Drawer(case.world)
    _, losses = optimised(drawer, case.x0["prompts"][0], drawer.null, 0)
    assert Found(tmp_path / "out").rows["prompts/0/drawings"]["losses"] == pytest.approx(losses, rel=1e-4)


# ---- noise that draws the picture ----------------------------------------------------------------------------------------------

INVERSION = ["--rows", 1, "--set", "optimisation_steps=0", "--inversion-steps", 7, "--inversion-batch", 3, "--inversion-every", 3,
             "--inversion-drawings", 2, "--inversion-guidance", 3]
INVERSION_NOISE, INVERSION_TIMESTEP, INVERSION_DRAWING = 53, 54, 55


def predicted_x0(scheduler, x, answer, t):
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "epsilon":
        return (x - (1 - a).sqrt() * answer) / a.sqrt()
    return a.sqrt() * x - (1 - a).sqrt() * answer


def inverted(drawer, x0, text, key, batch, every, steps):
    """(errors, divergences, weights, standard normal noise -> noise): InvMM's search without its prompt, from its description."""
    mean, log_variance = torch.zeros_like(x0, requires_grad=True), torch.zeros_like(x0, requires_grad=True)
    adam = torch.optim.Adam([mean, log_variance], lr=RATE)
    weight, before, errors, divergences, weights = 1.0, None, [], [], []
    for step in range(steps):
        rows = [(key, step * batch + i) for i in range(batch)]
        normal = torch.tensor(keyed_noise.normal(SEED, INVERSION_NOISE, rows, x0.shape))
        t = torch.tensor([(keyed_noise.keyed_bits(SEED, INVERSION_TIMESTEP, *row) >> 32) * 1000 >> 32 for row in rows])
        noise = mean + (log_variance / 2).exp() * normal
        x = drawer.scheduler.add_noise(x0[None].expand_as(noise), noise, t)
        answer = drawer.unet(x, t, encoder_hidden_states=text[None].expand(batch, -1, -1)).sample
        error = (predicted_x0(drawer.scheduler, x, answer, t) - x0).square().mean()
        divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).mean()
        adam.zero_grad()
        (error + weight * divergence).backward()
        adam.step()
        errors.append(error.item())
        divergences.append(divergence.item())
        weights.append(weight)
        now = np.mean(errors[-100:])
        if (step + 1) % every == 0:
            weight = weight / 2 if before is not None and before - now < 0.001 else weight + 0.001
            before = now
        else:
            weight += 0.001
    return errors, divergences, weights, mean.detach(), log_variance.detach()


def test_inverted_noise_follows_the_path_of_python(case, tmp_path):
    bare = tmp_path / "bare"
    for name in ("unet", "scheduler"):
        shutil.copytree(case.world.pipeline / name, bare / name)
    command = case.command(tmp_path / "out", "--inversion-similarity", 1, *INVERSION)
    command[command.index("--model") + 1] = bare
    run_ok(*command)
    told = Found(tmp_path / "out").rows["prompts/1/inversion"]["inversion"]
    drawer, x0 = Drawer(case.world), case.x0["prompts"][1]
    errors, divergences, weights, mean, log_variance = inverted(drawer, x0, drawer.text[1], 1, 3, 3, 7)
    assert told["errors"] == pytest.approx(errors, rel=1e-4)
    assert told["divergences"] == pytest.approx(divergences, rel=1e-4, abs=1e-9)
    assert told["weights"] == pytest.approx(weights, rel=1e-9) and max(weights) > 1
    # Of the two pipelines at least this one has an error that stays where it is.
    assert min(weights) < 0.6 or drawer.scheduler.config.prediction_type == "epsilon"
    assert told["divergence"] is None and told["drawings"] == 3 * 2 * 3
    # The last look, after the last update, beside those after three and six.
    best = {}
    for guidance in (1, 2, 3):
        similarity = []
        for number in (4, 5):
            normal = torch.tensor(keyed_noise.normal(SEED, INVERSION_DRAWING, [(1, number)], x0.shape))
            x = mean + (log_variance / 2).exp() * normal
            for t in drawer.scheduler.timesteps:
                with torch.no_grad():
                    null, captioned = drawer.predict(x, t, drawer.text[1])
                    x = drawer.scheduler.step(null + guidance * (captioned - null), t, x, eta=0).prev_sample
            similarity.append(np.corrcoef(x.numpy().ravel(), x0.numpy().ravel())[0, 1])
        best[guidance] = similarity
    guidance = max(best, key=lambda g: min(best[g]))
    assert told["guidance"] == guidance and told["similarity"] == pytest.approx(best[guidance], abs=2e-3)


def test_inversion_ends_at_the_first_look_that_succeeds_and_is_told(case, tmp_path):
    command = case.command(tmp_path / "out", "--held-out", case.held_out, "--inversion-similarity=-1", *INVERSION)
    told = run(*command)
    assert told.returncode == 0, told.stderr
    warning = f"noise is inverted for {len(NEGATIVES)} held-out pictures: with fewer than 19"
    assert told.stderr.index(warning) < told.stderr.index("check-picture: batch")
    found = Found(tmp_path / "out")
    row = found.rows["prompts/1/inversion"]["inversion"]
    assert len(row["errors"]) == 3 and row["drawings"] == 2 * 3 and 0 < row["divergence"] < 1
    others = [found.rows[f"held_out/{i}/inversion"]["inversion"]["divergence"] for i in range(len(NEGATIVES))]
    prompt = found.summary["prompts"][0]
    assert prompt["divergence"] == row["divergence"]
    assert prompt["p_divergence"] == pytest.approx((1 + sum(d <= row["divergence"] for d in others)) / (1 + len(NEGATIVES)))
    assert prompt["verdict"] == f"not shown by {PICTURES + 6} drawings"  # so few held-out pictures never show it
    assert found.summary["held_out"]["inverted"] == {"pictures": len(NEGATIVES), "found": len(NEGATIVES)}
    assert "inverted noise" in (tmp_path / "out" / "page.html").read_text()


def test_refusals(epsilon_world, tmp_path):
    case = Case(epsilon_world, tmp_path)
    for row in ("3", "-1", "x"):
        assert_refused(run(*case.command(tmp_path / "out", f"--rows={row}")), 2, "rows", f"'{row}'", "0 to 2")
    assert_refused(run(*case.command(tmp_path / "out", "--rows", 1, "--rows", 1)), 2, "rows", "twice")
    assert_refused(run(*case.command(tmp_path / "out", "--held-out", epsilon_world.negatives)), 3, "negatives.h5", "no pictures")
    command = case.command(tmp_path / "out")
    command[command.index("--prompts") + 1] = epsilon_world.prompts
    assert_refused(run(*command), 3, "prompts.h5", "holds no pictures", "memsieve prepare")
    assert_refused(run(*case.command(tmp_path / "out", "--held-out", case.pictures)), 3, "pictures.h5", "row 0", "must be others")
    with h5py.File(case.held_out, "a") as file:
        file["encoder_bytes"][:] = file["encoder_bytes"][:][::-1]
    assert_refused(run(*case.command(tmp_path / "out", "--held-out", case.held_out)), 3, "held_out.h5", "another text encoder")
