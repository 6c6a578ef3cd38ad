"""import memsieve: bad input ends in an exception of a documented class with one line that says where, what and how to mend it."""
import subprocess
import sys

import module_toy as toy
import pytest
import torch
from conftest import clean_environment
from module_toy import memsieve


def rows_with(**changes):
    rows = toy.rows_of(toy.Step(0), 0, toy.ROWS)
    return {**rows, **changes}


def raised_by_step(sieve, model, rows, **more):
    """What step() raises after a batch; inspect, the loss and backward must go on, since peers may wait in them."""
    plan = sieve.inspect(rows["ids"], rows["t"], rows["prediction"] if "prediction" in rows else model(rows["x"], rows["caption"]), rows["target"],
                         **{"null": lambda k: model(rows["x"][k], torch.zeros_like(rows["x"][k])), **more})
    loss = (model(rows["x"], rows["caption"]) - toy.Step(0).target).square().mean(1)
    plan.loss(loss).backward()
    before = model.weight.detach().clone()
    with pytest.raises(Exception) as caught:
        sieve.step(torch.optim.SGD(model.parameters(), 0.1))
    assert torch.equal(model.weight, before), "the update was made"
    return caught.value


class Own(Exception):
    pass


def raising(k):
    raise Own("the model is on fire")


BATCHES = {
    "ids_int32": ({"ids": torch.zeros(toy.ROWS, dtype=torch.int32)}, {}, "sample_id must be int64 [24] on the CPU"),
    "ids_shape": ({"ids": torch.zeros(3, dtype=torch.int64)}, {}, "sample_id must be int64 [24]"),
    "ids_range": ({"ids": torch.full((toy.ROWS,), 50)}, {}, "sample id 50 is out of range [0, 50)"),
    "ids_text": ({"ids": ["a.png"] * toy.ROWS}, {}, "ids is a list, which torch.as_tensor does not take"),
    "timesteps_range": ({"t": torch.full((toy.ROWS,), 1000)}, {}, "timesteps must lie in [0, 1000)"),
    "timesteps_none": ({"t": None}, {}, "timestep is missing"),
    "target_shape": ({"target": torch.zeros(toy.ROWS, 3)}, {}, "target has another shape than prediction"),
    "prediction_none": ({"prediction": None}, {}, "prediction must be [B, C, ...]"),
    "prediction_dtype": ({"prediction": torch.zeros(toy.ROWS, toy.DIM, dtype=torch.int64)}, {}, "prediction is Long, not a floating type"),
    "prediction_device": ({"prediction": torch.zeros(toy.ROWS, toy.DIM, device="meta")}, {}, "prediction is on meta, but the sieve was made for cpu"),
    "too_many": ({name: torch.cat([value, value]) for name, value in toy.rows_of(toy.Step(0), 0, toy.ROWS).items() if name in ("ids", "t", "target")}
                 | {"prediction": torch.zeros(2 * toy.ROWS, toy.DIM)}, {}, "48 rows, but this call takes 1 to 24"),
    "null_missing": ({}, {"null": None}, "the prediction 'null' is missing, which the configured filters read; pass null="),
    "null_shape": ({}, {"null": lambda k: torch.zeros(len(k), 3)}, "null_prediction returned another shape"),
    "null_text": ({}, {"null": "unet"}, "'null' is a str; pass a tensor like prediction, or a callable"),
    "null_rows": ({}, {"null": torch.zeros(3, toy.DIM)},
                  "'null' has 3 rows on cpu, but prediction has 24 rows on cpu; pass a tensor like prediction"),
    "null_scalar": ({}, {"null": torch.tensor(0.0)}, "'null' has no rows on cpu, but prediction has 24 rows on cpu"),
    "null_device": ({}, {"null": torch.zeros(toy.ROWS, toy.DIM, device="meta")}, "'null' has 24 rows on meta, but prediction has 24 rows on cpu"),
    "null_list": ({}, {"null": lambda k: [0]}, "the callable for 'null' returned a list, not a tensor"),
    "exempt_shape": ({}, {"exempt": torch.zeros(2, dtype=torch.bool)}, "exempt must have the shape [24]"),
    "stratum": ({}, {"stratum": torch.ones(toy.ROWS, dtype=torch.int64)}, "stratum 1 is out of range [0, 1)"),
    "likeness": ({}, {"likeness": torch.zeros(toy.ROWS)}, "likeness must be [24, F]"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches(case):
    changes, more, words = BATCHES[case]
    error = raised_by_step(toy.published_sieve(), toy.Model(), rows_with(**changes), **more)
    assert type(error) is memsieve.DataError and isinstance(error, (memsieve.Error, ValueError)), repr(error)
    assert str(error).startswith("step 0: rank 0: ") and words in str(error) and "\n" not in str(error), str(error)


def test_a_callables_own_exception_passes_through_unchanged():
    error = raised_by_step(toy.published_sieve(), toy.Model(), rows_with(), null=raising)
    assert type(error) is Own and error.args == ("the model is on fire",) and error.__traceback__ is not None
    names = []
    trace = error.__traceback__
    while trace:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "raising" in names

    @memsieve.filter
    def burning(view):
        raise Own("so is the filter")

    sieve = memsieve.Sieve({**toy.PUBLISHED, "filters": {"burning": {}}}, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu",
                           filters=[burning])
    error = raised_by_step(sieve, toy.Model(), rows_with())
    assert type(error) is Own and str(error) == "so is the filter"


def test_a_loss_of_another_shape():
    model, sieve = toy.Model(), toy.published_sieve()
    for wrong in (lambda loss: loss.mean(), lambda loss: loss[:3], lambda loss: 0.5):
        model, sieve = toy.Model(), toy.published_sieve()
        plan, loss = toy.inspect(sieve, model, rows_with())
        plan.loss(wrong(loss)).backward()
        with pytest.raises(memsieve.DataError, match="per-sample loss"):
            sieve.step(torch.optim.SGD(model.parameters(), 0.1))


def test_inspect_without_step_and_step_without_inspect():
    model, sieve = toy.Model(), toy.published_sieve()
    toy.inspect(sieve, model, rows_with())
    with pytest.raises(memsieve.DataError, match="call 2 in step 0, but micro_batches is 1; call Sieve.step"):
        toy.inspect(sieve, model, rows_with())
    with pytest.raises(memsieve.DataError, match="no micro-batch was inspected in step 0"):
        toy.published_sieve().step(torch.optim.SGD(model.parameters(), 0.1))


def test_the_loops_own_error():
    model, sieve = toy.Model(), toy.published_sieve()
    plan, loss = toy.inspect(sieve, model, rows_with())
    plan.loss(loss).backward()
    sieve.fail(Own("no more pictures"))
    with pytest.raises(Own, match="no more pictures"):
        sieve.step(torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("how", ["fail", "skip"])
def test_not_finite(how):
    """In a loss, and in a gradient of finite losses: an error on the spot, or a step that is skipped."""
    for where in ("loss", "gradient"):
        model = toy.Model()
        sieve = memsieve.Sieve({**toy.PUBLISHED, "on_nonfinite": how}, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu")
        rows = rows_with(ids=torch.arange(toy.ROWS))
        if where == "loss":
            rows["x"] = rows["x"].clone()
            rows["x"][5] = float("nan")
        plan, loss = toy.inspect(sieve, model, rows)
        plan.loss(loss).backward()
        if where == "gradient":
            model.weight.grad[0, 0] = float("inf")
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if how == "fail":
            with pytest.raises(memsieve.NonFiniteError, match="sample 5: NaN" if where == "loss" else "in the gradient") as caught:
                sieve.step(optimizer)
            assert isinstance(caught.value, ArithmeticError) and "\n" not in str(caught.value)
        else:
            end = sieve.step(optimizer)
            assert end.skipped and end.nonfinite == 1
        assert torch.equal(model.weight, before)


SETUPS = {
    "no file": (dict(config="nowhere.yaml"), "nowhere.yaml"),
    "unknown key": (dict(config={"filters": {"magnitude": {}}, "treshold": {}}),
                    "the dict:1: sieve.treshold: unknown key; did you mean 'threshold'?"),
    "unknown filter": (dict(config={"filters": {"magnitud": {}}}), "magnitud"),
    "not YAML": (dict(config={"filters": {"magnitude": {"x": object()}}}), "the dict cannot be written as YAML"),
    "no configuration": (dict(config=7), "config is a int; it must be a path, a dict, or one of the rules"),
    "dataset_size": (dict(dataset_size=0), "dataset_size: is 0, must be at least 1"),
    "batch_size": (dict(batch_size=2.5), "batch_size is a float; it must be an int"),
    "samples": (dict(samples=51), "Setup::samples: is 51, must be 1 to dataset_size = 50"),
    "samples' type": (dict(samples="50"), "samples is a str; it must be an int"),
    "group ids": (dict(group_ids=torch.zeros(3, dtype=torch.int64)), "group_id: has 3 entries for 50 samples"),
    "group ids' dtype": (dict(group_ids=torch.zeros(50)), "group_ids: must be int64"),
    "device": (dict(device="tpuu"), "device 'tpuu' is none"),
    "group": (dict(group="world"), "group: is a str, not a torch.distributed.ProcessGroup"),
    "override": (dict(overrides=["sieve.threshold.drp=1"]), "drp"),
}


@pytest.mark.parametrize("case", SETUPS)
def test_setups(case):
    changes, words = SETUPS[case]
    changes = dict(changes)
    config = changes.pop("config", toy.PUBLISHED)
    with pytest.raises(memsieve.ConfigError) as caught:
        memsieve.Sieve(config, **{"dataset_size": toy.SAMPLES, "batch_size": 4, "device": "cpu", **changes})
    assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_states():
    state = toy.published_sieve().state_dict()
    begun = toy.published_sieve()
    toy.inspect(begun, toy.Model(), rows_with())
    for sieve, bad, words in [
            (begun, state, "is at step 0 already"),
            (toy.published_sieve(), {k: v for k, v in state.items() if k != "clock"}, "'clock' is missing"),
            (toy.published_sieve(), {k: v for k, v in state.items() if k != "filters"}, "'filters' is missing"),
            (toy.published_sieve(), {**state, "filters": [1]}, "'filters' is a list, not a tensor"),
            (toy.published_sieve(), {**state, "flags_recent": b"\0" * 40}, "'flags_recent' has 40 bytes, which is no multiple of 32"),
            (toy.published_sieve(), {**state, "flags_recent": b"\0" * 7}, "'flags_recent' has 7 bytes, which is no multiple of 32"),
            (memsieve.Sieve("selective_backprop", dataset_size=toy.SAMPLES, batch_size=4, device="cpu"), state, "belongs to the filters magnitude"),
    ]:
        with pytest.raises(memsieve.DataError, match=words) as caught:
            sieve.load_state_dict(bad)
        assert "\n" not in str(caught.value)


def test_python_filters_that_cannot_be():
    with pytest.raises(memsieve.ConfigError, match="option power has no default"):
        memsieve.filter(lambda view, power: view)
    with pytest.raises(memsieve.ConfigError, match="its default is a list; use a bool, int, float or str"):
        memsieve.Sieve(toy.PUBLISHED, dataset_size=5, batch_size=5, filters=[memsieve.filter(lambda view, power=[]: view)])
    with pytest.raises(memsieve.ConfigError, match="magnitude"):
        memsieve.Sieve(toy.PUBLISHED, dataset_size=5, batch_size=5, filters=[memsieve.filter("magnitude")(lambda view: view)])
    for made, words in ((lambda view: 3, "filter mine: returned a int, not a tensor"),
                        (lambda view: view.prediction_error[:1], "filter mine: score must have shape"),
                        (lambda view: view.signal("magnitude"), "reads the signal 'magnitude' without naming it")):
        sieve = memsieve.Sieve({**toy.PUBLISHED, "filters": {"mine": {}}}, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu",
                               filters=[memsieve.filter("mine")(made)])
        error = raised_by_step(sieve, toy.Model(), rows_with())
        assert isinstance(error, memsieve.Error) and words in str(error) and "\n" not in str(error), str(error)


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env=clean_environment(**environment))


def test_what_a_sieve_holds_is_released_at_exit():
    """A sieve that lives as long as the process is taken down with the interpreter, and lets go of its Python objects then."""
    result = python(f"""
import os, sys, torch
import memsieve
class Score:
    def __call__(self, view):
        return view.prediction_error
    def __del__(self, write=os.write):
        write(1, b"released\\n")
rule = {{**{toy.PUBLISHED!r}, "filters": {{"mine": {{}}}}}}
sieve = memsieve.Sieve(rule, dataset_size=5, batch_size=2, device="cpu", filters=[memsieve.filter("mine")(Score())])
sieve.inspect(torch.arange(2), torch.arange(2), torch.ones(2, 3), torch.zeros(2, 3), null=lambda rows: torch.ones(len(rows), 3))
sys.kept = sieve._core
del sieve
print("end", flush=True)
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\nreleased\n", "")


def test_another_torch_is_told_before_anything_is_loaded():
    for found, words in ((("2.99.0"), "built with torch 2.11.0, but this environment has torch 2.99.0; build memsieve again"),
                         (None, "needs torch 2.11.0, but there is none in this environment; pip install torch==2.11.0")):
        result = python(f"""
import importlib.metadata as m
real = m.version
def version(name):
    if name == "torch" and {found!r} is None: raise m.PackageNotFoundError(name)
    return {found!r} if name == "torch" else real(name)
m.version = version
try:
    from memsieve import Sieve
except ImportError as error:
    import sys
    print(error, "torch" in sys.modules)
""")
        assert words in result.stdout and result.stdout.count("\n") == 1 and result.stdout.endswith(" False\n"), result.stdout + result.stderr
