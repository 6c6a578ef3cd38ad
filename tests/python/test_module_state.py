"""What a sieve keeps: its state, which process it belongs to, ids, flagged samples, rules."""
import io
import os
import threading
import warnings

import module_toy as toy
import pytest
import torch
from module_toy import memsieve, sgd, train

LEDGER = {**toy.PUBLISHED, "filters": {"magnitude": {"scale": "log"}},
          "standardise": {"by": "timestep", "population": "training", "bins": 2, "window": 20},
          "evidence": {"kind": "discounted", "min_visits": 1}, "threshold": {"kind": "rate", "false_drop_rate": 0.2},
          "action": {"kind": "drop", "pass_over": True}, "revisit": {"rows": 2, "every": 2}}


def slow_sgd(parameters):
    """At the rate of the other tests rows with large captions, of which this rule keeps some, make the toy diverge."""
    return torch.optim.SGD(parameters, 1e-3)


def run_steps(sieve, model, optimizer, numbers):
    for number in numbers:
        for _ in [look.id for look in sieve.looks()][:1]:
            looks = [look.id for look in sieve.looks()]
            rows = toy.rows_of(toy.Step(1000 + number), 0, len(looks))
            with torch.no_grad():
                prediction = model(rows["x"], rows["caption"])
                sieve.look(looks, rows["t"], prediction, rows["target"], null=model(rows["x"], torch.zeros_like(rows["x"])))
        plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number, "one_rank"), 0, toy.ROWS))
        plan.loss(loss).backward()
        sieve.step(optimizer)
        optimizer.zero_grad()


@pytest.mark.parametrize("carrier", ["torch.save", "checkpoint"])
def test_state_goes_round(carrier, tmp_path):
    """A run that is stopped and resumed ends as one that was not: parameters, state and ledger."""
    from torch.distributed import checkpoint

    def fresh(name):
        model = toy.Model()
        return memsieve.Sieve(LEDGER, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu", ledger=tmp_path / name), model, slow_sgd([model.weight])

    whole, model, optimizer = fresh("whole.h5")
    whole.epoch = 3
    run_steps(whole, model, optimizer, range(30))
    first, first_model, first_optimizer = fresh("stopped.h5")
    first.epoch = 3
    run_steps(first, first_model, first_optimizer, range(18))
    second, second_model, second_optimizer = None, toy.Model(), None
    if carrier == "torch.save":
        file = io.BytesIO()
        torch.save({"sieve": first.state_dict(), "model": first_model.state_dict()}, file)
        del first
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        second, second_model, second_optimizer = fresh("stopped.h5")
        second.load_state_dict(state["sieve"])
        second_model.load_state_dict(state["model"])
    else:
        checkpoint.save({"sieve": first, "model": first_model}, checkpoint_id=tmp_path / "saved", no_dist=True)
        del first
        second, second_model, second_optimizer = fresh("stopped.h5")
        checkpoint.load({"sieve": second, "model": second_model}, checkpoint_id=tmp_path / "saved", no_dist=True)
    assert second.clock == (18, 3)
    run_steps(second, second_model, second_optimizer, range(18, 30))
    assert torch.equal(second_model.weight, model.weight)
    mine, theirs = second.state_dict(), whole.state_dict()
    assert mine.keys() == theirs.keys() and "flags_recent" in mine
    for name in mine:
        same = mine[name] == theirs[name] if isinstance(mine[name], bytes) else torch.equal(mine[name].nan_to_num(-7), theirs[name].nan_to_num(-7))
        assert same, name
    assert whole.flagged().any(), "nothing was flagged: the test shows nothing"
    from memsieve import ledger
    assert ledger.visits(tmp_path / "stopped.h5").tobytes() == ledger.visits(tmp_path / "whole.h5").tobytes()


def test_two_sieves_in_one_process():
    """Neither notices the other."""
    alone, _, _ = train("random", sgd)
    models = toy.Model(), toy.Model()
    sieves = [toy.published_sieve() for _ in models]
    for number in range(toy.STEPS):
        for sieve, model in zip(sieves, models):
            plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number), 0, toy.ROWS))
            plan.loss(loss).backward()
            sieve.step(sgd([model.weight]))
            model.weight.grad = None
    for model in models:
        assert torch.equal(model.weight, alone[-1])


def test_a_forked_process_is_told(tmp_path):
    sieve = toy.published_sieve(ledger=tmp_path / "ledger.h5")
    run_steps_of = toy.rows_of(toy.Step(0), 0, toy.ROWS)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = "nothing"
            try:
                sieve.inspect(*[None] * 4)
            except memsieve.Error as error:
                said = str(error)
            del sieve  # must not wait for threads that are not here
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    timer = threading.Timer(20, os.kill, (child, 9))
    timer.start()
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    timer.cancel()
    assert f"belongs to process {os.getpid()}" in said and "\n" not in said
    toy.inspect(sieve, toy.Model(), run_steps_of)


def test_passing_over_flagged_samples():
    """Batches hold no flagged sample, ranks get parts of one stream, and the ledger's report counts what was passed over."""
    sieve = memsieve.Sieve(LEDGER, dataset_size=toy.SAMPLES, batch_size=8, device="cpu")
    batches = memsieve.PassOverBatches(sieve, seed=5)
    model = toy.Model()
    optimizer = slow_sgd([model.weight])
    passed = 0
    for sieve.epoch in range(12):
        seen = []
        for ids in torch.utils.data.DataLoader(torch.arange(toy.SAMPLES), batch_sampler=batches):
            flagged = sieve.flagged()
            assert not flagged[ids].any()
            seen += ids.tolist()
            rows = toy.rows_of(toy.Step(sieve.clock[0], "one_rank" if ids.min() < 9 else "random"), 0, 8)
            if looks := [look.id for look in sieve.looks()]:
                two = toy.rows_of(toy.Step(1), 0, len(looks))
                sieve.look(looks, two["t"], model(two["x"], two["caption"]).detach(), two["target"], null=model(two["x"], two["x"] * 0).detach())
            plan, loss = toy.inspect(sieve, model, {**rows, "ids": ids})
            plan.loss(loss).backward()
            sieve.step(optimizer)
            optimizer.zero_grad()
            passed += sum(report.passed_over for report in sieve.reports())
        assert len(set(seen)) == len(seen)
    assert passed > 0
    whole = [ids for ids in memsieve.PassOverBatches(toy.published_sieve(8), rank=0, world_size=1)]
    halves = [list(memsieve.PassOverBatches(toy.published_sieve(4), rank=rank, world_size=2)) for rank in (0, 1)]
    assert whole == [a + b for a, b in zip(*halves)] and len(whole) == toy.SAMPLES // 8


def test_ids():
    names = [f"folder/{n}.png" for n in range(2000)]
    ids = memsieve.id_of(names, 2 ** 40)
    assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < 2 ** 40 and len(set(ids.tolist())) == len(names)
    assert memsieve.id_of(names[7], 2 ** 40) == ids[7] and memsieve.id_of(names[7].encode(), 2 ** 40) == ids[7]
    assert memsieve.id_of("a.png", 1000) == int.from_bytes(__import__("hashlib").blake2b(b"a.png", digest_size=8).digest(), "big") % 1000

    class Dicts(torch.utils.data.Dataset):
        size = "big"

        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {"x": torch.tensor(float(index))}

    class Batches(Dicts):
        def __getitems__(self, indices):  # what the loader prefers: datasets' Dataset has it
            return [self[index] for index in indices]

    data = memsieve.WithIds(Dicts())
    assert data.size == "big" and len(data) == 5 and data[-1] == {"x": torch.tensor(-1.0), "sample_id": 4}
    for data in (data, memsieve.WithIds(Batches())):
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, shuffle=True,
                                             collate_fn=memsieve.with_ids(lambda samples: {"x": torch.stack([s["x"] for s in samples])}))
        for batch in loader:
            assert batch["sample_id"].dtype == torch.int64 and torch.equal(batch["x"], batch["sample_id"].float())
    assert memsieve.WithIds([(1, 2), (3, 4)])[1] == (3, 4, 1) and memsieve.WithIds(torch.arange(3))[2] == (torch.tensor(2), 2)


def test_samples_with_hashed_ids():
    """Held-out rows are as many as the samples take, however many ids there is room for."""
    def held_out_ids(**size):
        sieve = memsieve.Sieve({**toy.PUBLISHED, "held_out": {"rows": 4}}, batch_size=4, held_out_size=5, device="cpu", **size)
        return {visit.id for step in range(100) for visit in sieve._core.held_out_visits(step)}

    assert held_out_ids(dataset_size=5000, samples=50) == held_out_ids(dataset_size=50) != held_out_ids(dataset_size=5000)


@pytest.mark.parametrize("given", [False, True])
def test_a_likeness_that_never_comes_is_told_once(given):
    rule = {"filters": {"prediction_error": {}}, "standardise": {"population": "training"}, "evidence": {"kind": "discounted"},
            "threshold": {"kind": "rate"}, "held_out": {"rows": 0}, "probe": {"kind": "budget", "likeness": 6}}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sieve, model = memsieve.Sieve(rule, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu"), toy.Model()
        for number in range(3):
            assert not told or number
            toy.inspect(sieve, model, toy.rows_of(toy.Step(number), 0, toy.ROWS), likeness=torch.ones(toy.ROWS, 4) if given else None)
            sieve.end_step()
    assert len(told) == (0 if given else 1)
    assert all("no batch had Batch::likeness (Python: likeness=)" in str(one.message) for one in told)


def test_rules_of_the_package():
    assert {"default", "no_held_out", "wen2024"} <= set(memsieve.rules())
    for name in memsieve.rules():
        assert memsieve.Sieve(name, dataset_size=100, batch_size=8, held_out_size=64, device="cpu").channels, name
