"""What each rank of tests/python/test_module_ranks.py runs: module_rank.py CASE [ARGUMENT]. Prints what the test compares."""
import datetime
import gc
import os
import sys
import threading
import time

import module_toy as toy
import torch
import torch.distributed as dist
from module_toy import memsieve

CASES = {}


def say(line):
    """In one piece, beside what other ranks say."""
    os.write(1, f"{line}\n".encode())



def case(function):
    CASES[function.__name__] = function
    return function


def my_rows(step, micro, micros=toy.MICRO):
    rows = toy.ROWS // micros // dist.get_world_size()
    first = (micro * dist.get_world_size() + dist.get_rank()) * rows
    return toy.rows_of(step, first, first + rows)


def sieve_of_rank(config=toy.PUBLISHED, **more):
    size = toy.ROWS // toy.MICRO // dist.get_world_size()
    return memsieve.Sieve(config, **{"dataset_size": toy.SAMPLES, "batch_size": size, "micro_batches": toy.MICRO, "device": "cpu", **more})


def run_steps(model, sieve, kind, step, numbers=range(toy.STEPS)):
    """Weights after each step."""
    inner = getattr(model, "module", model)
    for number in numbers:
        for micro in range(toy.MICRO):
            plan, loss = toy.inspect(sieve, model, my_rows(toy.Step(number, kind), micro), plain=inner)
            sync = micro + 1 == toy.MICRO
            with model.no_sync() if hasattr(model, "no_sync") and not sync else threading.RLock():
                plan.loss(loss).backward()
        step()
        yield number, inner.weight


def compare(history, kind):
    expected = toy.by_hand(kind)
    for number, weight in history:
        full = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        torch.testing.assert_close(full.detach(), expected[number], rtol=1e-6, atol=1e-7)
    say("the same")


@case
def laws(kind):
    """N ranks under DistributedDataParallel train as one that holds all rows, whoever drops what."""
    model = torch.nn.parallel.DistributedDataParallel(toy.Model())
    sieve = sieve_of_rank()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        sieve.step(optimizer)
        optimizer.zero_grad()

    compare(run_steps(model, sieve, kind, step), kind)


@case
def fsdp(kind):
    """The same with the parameters sharded (FSDP2); a fused optimiser does what an ordinary one does."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))

    def train(make_optimizer):
        model = toy.Model()
        fully_shard(model, mesh=mesh)
        sieve, optimizer, history = sieve_of_rank(), make_optimizer(model.parameters()), []
        for number in range(toy.STEPS):
            for micro in range(toy.MICRO):
                rows = my_rows(toy.Step(number, kind), micro)
                plan, loss = toy.inspect(sieve, model, rows)
                plan.loss(loss).backward()
            sieve.step(optimizer)
            optimizer.zero_grad()
            history.append(model.weight.full_tensor().detach().clone())
        return history

    compare(enumerate(train(lambda parameters: torch.optim.SGD(parameters, 0.1))), kind)
    both = [train(lambda parameters: torch.optim.AdamW(parameters, 0.1, fused=fused)) for fused in (False, True)]
    for ordinary, fused in zip(*both):
        torch.testing.assert_close(ordinary, fused)


class Own(Exception):
    pass


def said_by_step(break_it, group=None):
    """What step() raises if `break_it(rows)` -> more arguments is called for rank 1's batch of step 2."""
    model = torch.nn.parallel.DistributedDataParallel(toy.Model())
    sieve = sieve_of_rank(group=group)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number in range(4):
        before = model.module.weight.detach().clone()
        for micro in range(toy.MICRO):
            rows = my_rows(toy.Step(number), micro)
            more = break_it(rows) if dist.get_rank() == 1 and number == 2 else {}
            plan, loss = toy.inspect(sieve, model, {**rows, **more.pop("rows", {})}, plain=model.module, **more)
            plan.loss(loss).backward()
        try:
            sieve.step(optimizer)
        except Exception as error:
            assert torch.equal(model.module.weight, before)
            say(f"{dist.get_rank()} {number} {type(error).__name__}: {error}")
            return
        optimizer.zero_grad()


@case
def raising(_):
    def null(k):
        raise Own("on fire\nbadly")
    said_by_step(lambda rows: {"null": null})


@case
def bad_ids(_):
    said_by_step(lambda rows: {"rows": {"ids": rows["ids"].int()}})


@case
def passes_are_collectives(_):
    """Whatever is wrong with rank 1's batch: the model's passes, which all ranks take part in as with FSDP, are the same number."""
    mistakes = {"ids": object(), "t": None, "target": torch.zeros(3), "prediction": "none", "stratum": object(), "likeness": torch.zeros(3)}
    rank, calls = dist.get_rank(), 0

    def null(k):
        nonlocal calls
        calls += 1
        together = torch.ones(1)
        dist.all_reduce(together)
        return torch.zeros(len(k), toy.DIM) + together

    for what, wrong in mistakes.items():
        sieve = sieve_of_rank({**toy.PUBLISHED, "held_out": {"rows": 24}}, held_out_size=12, micro_batches=1)
        for measure, ids in ((sieve.inspect, torch.arange(6)), (sieve.observe, torch.tensor([one.id for one in sieve.held_out_visits()]))):
            rows = len(ids)
            batch = {"ids": ids, "t": torch.full((rows,), 500), "prediction": torch.ones(rows, toy.DIM), "target": torch.ones(rows, toy.DIM)}
            batch.update({what: wrong} if rank == 1 else {})
            measure(batch.pop("ids"), batch.pop("t"), batch.pop("prediction"), batch.pop("target"), null=null, **batch)
        try:
            sieve.end_step()
        except memsieve.Error as error:
            assert str(error).startswith("step 0: rank 1: "), error
        else:
            raise AssertionError(f"no error of {what}")
    say(f"{calls} calls for {len(mistakes)} mistakes")


@case
def long_message(_):
    """One that is cut where a character has begun."""
    def null(k):
        raise ValueError("a" + "é" * 200)
    said_by_step(lambda rows: {"null": null})


@case
def not_finite(_):
    def spoil(rows):
        x = rows["x"].clone()
        x[0] = float("nan")
        return {"rows": {"x": x, "ids": torch.full_like(rows["ids"], 7)}}
    said_by_step(spoil)


@case
def disagreeing(_):
    try:
        sieve_of_rank({**toy.PUBLISHED, "threshold": {"kind": "fixed", "drop": 2.0 + dist.get_rank()}})
    except memsieve.ConfigError as error:
        say(f"{dist.get_rank()} {error}")


@case
def waiting(_):
    """Other Python threads run while a rank waits for its peers, and one sieve may be of some ranks alone."""
    model, sieve = toy.Model(), sieve_of_rank()
    counted, going = [0], True

    def count():
        while going:
            counted[0] += 1
            time.sleep(0.001)

    for micro in range(toy.MICRO):
        toy.inspect(sieve, model, my_rows(toy.Step(0), micro))
    thread = threading.Thread(target=count)
    thread.start()
    dist.barrier()
    if dist.get_rank() == 1:
        time.sleep(1.5)
    before, start = counted[0], time.monotonic()
    sieve.end_step()
    say(f"{dist.get_rank()} waited {time.monotonic() - start:.1f} s and counted {'much' if counted[0] - before > 100 else 'little'}")
    going = False
    thread.join()
    alone = dist.new_group([0])
    if dist.get_rank() == 0:
        by_itself = toy.published_sieve(group=alone)
        toy.inspect(by_itself, model, toy.rows_of(toy.Step(0), 0, toy.ROWS))
        by_itself.end_step()
    else:
        try:
            toy.published_sieve(group=alone)
        except memsieve.ConfigError as error:
            say(f"1 {error}")


@case
def subgroups(_):
    """Each sieve's group shares a stream of its own."""
    pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    rank = dist.get_rank()
    group = pairs[rank // 2]
    batches = memsieve.PassOverBatches(sieve_of_rank(group=group), shuffle=False)
    mine = torch.tensor([rows for rows in batches])
    parts = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(parts, mine, group=group)
    seen = torch.stack(parts, 1).flatten()
    say(f"{len(batches)} {'each sample once' if torch.equal(seen, torch.arange(len(seen))) else seen.tolist()} of {len(seen)}")


@case
def gone(_):
    """A rank that is gone is an error on those that wait for it."""
    model, sieve = toy.Model(), sieve_of_rank()
    for micro in range(toy.MICRO):
        toy.inspect(sieve, model, my_rows(toy.Step(0), micro))
    if dist.get_rank() == 1:
        os._exit(0)
    try:
        sieve.end_step()
    except memsieve.PeerError as error:
        say(f"0 {error}")
    os._exit(0)


@case
def closed(_):
    """A group that was closed while the sieve has it."""
    model, sieve = toy.Model(), sieve_of_rank()
    for micro in range(toy.MICRO):
        toy.inspect(sieve, model, my_rows(toy.Step(0), micro))
    group = dist.group.WORLD
    dist.barrier()
    rank = dist.get_rank()
    dist.destroy_process_group()
    try:
        memsieve.Sieve(toy.PUBLISHED, dataset_size=5, batch_size=2, device="cpu", group=group)
        say(f"{rank} nothing")
    except memsieve.Error as error:
        say(f"{rank} {type(error).__name__}: {error}")


@case
def accelerated(_):
    """accelerate with accumulation: its backward divides the loss, its optimiser is stepped in every micro-batch, its schedule stands still
    in a skipped step, its checkpoints carry the sieve."""
    from accelerate import Accelerator
    from memsieve.integrations.accelerate import sieve_for
    kind = "all_dropped"
    accelerator = Accelerator(gradient_accumulation_steps=toy.MICRO, cpu=True, step_scheduler_with_optimizer=True)
    for way in ("step", "attach"):
        model = toy.Model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        size = toy.ROWS // toy.MICRO // accelerator.num_processes
        sieve = sieve_for(accelerator, toy.PUBLISHED, dataset_size=toy.SAMPLES, batch_size=size)
        sieve, = [accelerator.prepare(sieve)]
        if way == "attach":
            sieve.attach(optimizer)
        expected = toy.by_hand(kind)
        for number in range(toy.STEPS):
            for micro in range(toy.MICRO):
                with accelerator.accumulate(model):
                    plan, loss = toy.inspect(sieve, model, my_rows(toy.Step(number, kind), micro), plain=accelerator.unwrap_model(model))
                    accelerator.backward(plan.loss(loss))
                    ended = sieve.step(optimizer) if way == "step" else optimizer.step()
                    assert way == "attach" or (ended is None) == (micro + 1 < toy.MICRO)
                    schedule.step()
                    optimizer.zero_grad()
            torch.testing.assert_close(accelerator.unwrap_model(model).weight.detach(), expected[number], rtol=1e-6, atol=1e-7)
            assert optimizer.step_was_skipped == (number == 2), (way, number)
        assert schedule.scheduler.last_epoch == (toy.STEPS - 1) * accelerator.num_processes
        folder = os.environ["MEMSIEVE_TEST_FOLDER"] + "/" + way
        accelerator.save_state(folder)
        accelerator._custom_objects.clear()
        again = sieve_for(accelerator, toy.PUBLISHED, dataset_size=toy.SAMPLES, batch_size=size)
        accelerator.load_state(folder)
        assert again.clock == (toy.STEPS, 0)
        accelerator._custom_objects.clear()
        accelerator._models.clear(), accelerator._optimizers.clear(), accelerator._schedulers.clear()
    say("the same")


@case
def checkpoint(_):
    """torch.distributed.checkpoint saves on all ranks and loads on all."""
    from torch.distributed import checkpoint
    folder = os.environ["MEMSIEVE_TEST_FOLDER"]
    whole = sieve_of_rank()
    model = torch.nn.parallel.DistributedDataParallel(toy.Model())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        whole.step(optimizer)
        optimizer.zero_grad()

    for _ in run_steps(model, whole, "random", step):
        pass
    checkpoint.save({"sieve": whole}, checkpoint_id=folder)
    again = sieve_of_rank()
    checkpoint.load({"sieve": again}, checkpoint_id=folder)
    mine, theirs = again.state_dict(), whole.state_dict()
    assert again.clock == (toy.STEPS, 0) and mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name].nan_to_num(-7), theirs[name].nan_to_num(-7)) for name in mine if isinstance(mine[name], torch.Tensor))
    say("the same")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    CASES[sys.argv[1]](*(sys.argv[2:] or [None]))
    gc.collect()  # DistributedDataParallel holds the group in a cycle, and its threads must end before Python does
    if dist.is_initialized():
        dist.destroy_process_group()
