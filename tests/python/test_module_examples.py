"""The example programs in Python run and show what they say; README shows the first."""
import importlib.util
import json
import re
import sys
import textwrap

import h5py
import numpy as np
import pytest
from conftest import BUILD, ROOT, run, run_ok, torchrun

EXAMPLES = ROOT / "examples" / "python"


def dropped(out):
    """Shares of the visits of the repeated picture and of the others, in percent."""
    return [int(share) for share in re.search(r"dropped: (\d+)% of the visits of the repeated\s+picture, (\d+)% of the others", out).groups()]


def test_toy_loop():
    repeated, others = dropped(run_ok(sys.executable, EXAMPLES / "1_toy_loop.py"))
    assert repeated >= 40 and others <= 8


def test_accelerate_on_two_ranks_resumed_in_the_middle():
    result = torchrun(2, sys.executable, EXAMPLES / "2_accelerate.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("384 steps on 2 ranks; ")
    repeated, others = dropped(result.stdout)
    assert repeated >= 35 and others <= 8


def test_lora_drops_the_repeated_picture():
    """Compared with the model without adapters."""
    out = run_ok(sys.executable, EXAMPLES / "3_lora_diffusers_peft.py")
    repeated, others = dropped(out[out.index("step 150: "):])
    assert repeated >= 35 and others <= 8, out
    probed, rows = map(int, re.search(r"(\d+) of (\d+) rows compared with the starting model", out).groups())
    assert probed == rows / 4 > 0


def test_the_notebook_runs():
    """Its cells one after the other, as code: what they show is looked at here, how Jupyter shows it is not."""
    notebook = json.loads((EXAMPLES / "6_dropped_pictures.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    look = """
assert len(axes.flat) == 12 and all(axis.images and "visits" in axis.get_title() for axis in axes.flat)
shares = by_picture.groupby("copies")["share"]
print(*samples.columns)
print(shares.min()[16], shares.mean()[1])
"""
    out = run_ok(sys.executable, "-c", "\n".join([*code, look]), cwd=EXAMPLES, MPLBACKEND="Agg")
    *_, columns, shares = out.splitlines()
    repeated, others = map(float, shares.split())  # of the visits: of the repeated picture that lost least, of the others on average
    assert repeated >= 0.3 and others <= 0.05, out
    shown = "\n".join("".join(output["data"]["text/plain"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
                      for output in cell["outputs"] if output["output_type"] == "execute_result" and "samples.head" in "".join(cell["source"]))
    assert re.findall(r"[a-z_]+", re.sub(r"^(id|\d).*$|\\", "", shown, flags=re.M)) == columns.split(), "what is stored is of another version"


def require_the_same(stored, made):
    """But for what the text encoder's last bit of float16 changes, which is another on another processor."""
    if np.asarray(stored).dtype.kind == "f":
        np.testing.assert_allclose(stored, made, rtol=2e-3, atol=2e-3)
    else:
        np.testing.assert_array_equal(stored, made)


@pytest.mark.skipif(not (ROOT / "data" / "demo" / "mix.h5").exists(), reason="no demo data here")
def test_the_emoji_are_those_of_the_demo(tmp_path):
    run_ok(sys.executable, EXAMPLES / "emoji" / "make.py", tmp_path)
    for name in ("train.h5", "held_out.h5"):
        with h5py.File(EXAMPLES / "emoji" / name) as stored, h5py.File(tmp_path / name) as made:
            assert set(stored) == set(made) and dict(stored.attrs) == dict(made.attrs)
            for key in stored:
                require_the_same(stored[key][:], made[key][:])
                assert stored[key].attrs.keys() == made[key].attrs.keys()
                for attribute, value in stored[key].attrs.items():
                    require_the_same(value, made[key].attrs[attribute])


def test_the_trainer_takes_the_emoji_of_the_examples(tmp_path):
    data = EXAMPLES / "emoji"
    (tmp_path / "run.yaml").write_text((ROOT / "configs" / "demo.yaml").read_text())
    settings = [f"data.train={data}/train.h5", f"data.held_out={data}/held_out.h5", "data.validation=", "data.prompts=",
                f"model.pretrained={ROOT}/models/demo_base", "validation.every=0", "sampling.every=0", "train_batch_size=16"]
    result = run(BUILD / "trainer" / "memsieve-train", "--config", "run.yaml", "--dry-run",
                 *(word for one in settings for word in ("--set", one)), cwd=tmp_path)
    assert result.returncode == 0 and "156 samples of" in result.stderr, result.stderr


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
def test_lightning():
    out = run_ok(sys.executable, EXAMPLES / "4_lightning.py")
    assert "384 steps; " in out
    repeated, others = dropped(out)
    assert repeated >= 35 and others <= 8


def test_a_filter_in_python():
    repeated, others = dropped(run_ok(sys.executable, EXAMPLES / "5_filter_in_python.py"))
    assert repeated >= 15 and others <= 3


def test_readme_shows_the_example():
    region = re.search(r"# \[readme\]\n(.*?)\n *# \[/readme\]", (EXAMPLES / "1_toy_loop.py").read_text(), re.S)[1]
    assert textwrap.dedent(region) in (ROOT / "README.md").read_text()


def test_the_lines_of_the_documentation_are_python():
    for page in ("python.md", "integrations.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
        assert blocks
        for block in blocks:
            compile(block, page, "exec")


def test_command_line():
    """What needs the module; the rest is in test_command_line.py."""
    memsieve = (sys.executable, "-m", "memsieve")
    assert run_ok(*memsieve, "--version").startswith("memsieve ")
    assert "abi         fits: a step of two rows came out right" in run_ok(*memsieve, "check")


def test_ledgers_as_frames(tmp_path):
    """Worked out by hand from what the plans of a run said."""
    import module_toy as toy
    import torch
    from memsieve import ledger
    model, sieve = toy.Model(), toy.published_sieve(ledger=tmp_path / "ledger.h5")
    visits, lost = torch.zeros(toy.SAMPLES), torch.zeros(toy.SAMPLES)
    for number in range(toy.STEPS):
        step = toy.Step(number)
        plan, loss = toy.inspect(sieve, model, toy.rows_of(step, 0, toy.ROWS))
        plan.loss(loss).backward()
        sieve.step(torch.optim.SGD(model.parameters(), 0.1))
        visits.index_add_(0, step.ids, torch.ones(toy.ROWS))
        lost.index_add_(0, step.ids, plan.weights.eq(0).float())
    sieve.flush()
    frame = ledger.frame(tmp_path)
    assert len(frame) == toy.STEPS * toy.ROWS and set(frame["kind"]) == {"training"} and (frame["weight"] == 0).sum() == lost.sum()
    samples = ledger.samples(tmp_path / "ledger.h5")
    assert samples["dropped"].is_monotonic_decreasing
    for sample, line in samples.iterrows():
        assert line["visits"] == visits[sample] and line["dropped"] == lost[sample]
    (tmp_path / "other.h5").write_bytes(b"no ledger")
    import memsieve
    for path in (tmp_path / "other.h5", tmp_path / "nowhere.h5"):
        with pytest.raises(memsieve.DataError, match="cannot be read as HDF5"):
            ledger.visits(path)


def test_adapters_off_leaves_what_was_frozen_frozen():
    """PEFT models, diffusers models with adapters, either wrapped; the prediction is the base model's, whatever happens inside."""
    import module_toy  # noqa: F401
    import torch
    from memsieve.integrations.peft import adapters_off, without_adapters
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    x = torch.randn(3, 4)
    plain = base(x)
    model = get_peft_model(base, LoraConfig(target_modules=["0", "1"], init_lora_weights=False))
    frozen = next(p for name, p in model.named_parameters() if "1.lora_A" in name)
    frozen.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    wrapped = torch.nn.DataParallel(model)
    torch.testing.assert_close(adapters_off(wrapped, lambda rows: model(x)[rows])(torch.tensor([1])), plain[[1]])
    with pytest.raises(KeyError), without_adapters(model):
        raise KeyError
    assert before == {name: p.requires_grad for name, p in model.named_parameters()}
    assert not torch.allclose(model(x), plain)
    with pytest.raises(TypeError, match="Linear has no adapters"), without_adapters(torch.nn.Linear(1, 1)):
        pass
