"""import memsieve: what a step does to gradients, parameters and optimisers, in one process."""
import module_toy as toy
import pytest
import torch
from memsieve import optimizers
from module_toy import memsieve, sgd, train


def adamw(parameters, **more):
    return torch.optim.AdamW(parameters, 0.1, **more)


def fused(parameters):
    return adamw(parameters, fused=True)


@pytest.mark.parametrize("kind", ["random", "all_dropped", "one_rank", "none"])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_trains_as_by_hand(kind, micro):
    history, _, ends = train(kind, sgd, micro=micro)
    for mine, hand in zip(history, toy.by_hand(kind)):
        torch.testing.assert_close(mine, hand, rtol=1e-6, atol=1e-7)
    assert [end.skipped for end in ends] == [kind == "all_dropped" and number == 2 for number in range(toy.STEPS)]


@pytest.mark.parametrize("make", [sgd, adamw, fused])
def test_nothing_dropped_is_the_plain_loop_bit_for_bit(make):
    history, optimizer, _ = train("none", make)
    model = toy.Model()
    plain = make([model.weight])
    for number in range(toy.STEPS):
        step = toy.Step(number, "none")
        (model(step.x, step.caption) - step.target).square().mean(1).mean().backward()
        plain.step()
        plain.zero_grad()
        assert torch.equal(model.weight, history[number]), number


@pytest.mark.parametrize("make", [adamw, fused])
def test_all_dropped_moves_nothing(make):
    """Neither parameters nor the optimiser's state: the step after it is as if there had been none."""
    history, optimizer, ends = train("all_dropped", make)
    assert ends[2].skipped and torch.equal(history[2], history[1]) and not torch.equal(history[3], history[2])
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == toy.STEPS - 1


def test_fused_and_ordinary_agree():
    for kind in ("random", "all_dropped"):
        for mine, other in zip(train(kind, adamw)[0], train(kind, fused)[0]):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("make", [sgd, adamw, fused])
def test_clipping_sees_the_divided_gradient(make):
    limit = 0.05
    history, _, ends = train("random", make, step=lambda sieve, optimizer: sieve.step(optimizer, max_norm=limit))

    def by_unscale(sieve, optimizer):
        end = sieve.unscale_(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit))
        assert sieve.step(optimizer) is end
        return end

    norms = []
    again, _, _ = train("random", make, step=by_unscale)
    assert all(torch.equal(a, b) for a, b in zip(history, again))
    model = toy.Model()
    step = toy.Step(0)
    weight = toy.weights_by_hand(step, model)
    loss = (weight * (model(step.x, step.caption) - step.target).square().mean(1)).sum() / weight.sum()
    gradient, = torch.autograd.grad(loss, model.weight)
    assert ends[0].grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5) == norms[0]


@pytest.mark.parametrize("make", [sgd, adamw, fused])
@pytest.mark.parametrize("clipped", [False, True])
def test_grad_scaler(make, clipped):
    """The same parameters as without it; an overflow skips the step and lowers the scale, a step without rows does not."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=1000)
    model = toy.Model()
    sieve, optimizer = toy.published_sieve(), make([model.weight])
    limit = {"max_norm": 1e3} if clipped else {}
    plain = train("all_dropped", make, step=lambda sieve, optimizer: sieve.step(optimizer, **limit))[0]
    for number in range(toy.STEPS):
        plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number, "all_dropped"), 0, toy.ROWS))
        scaler.scale(plan.loss(loss)).backward()
        end = sieve.step(optimizer, scaler=scaler, **limit)
        scaler.update()
        optimizer.zero_grad()
        assert scaler.get_scale() == 2.0 ** 10 and bool(end.skip) == (number == 2)
        torch.testing.assert_close(model.weight.detach(), plain[number], rtol=1e-6, atol=1e-7)
    before = model.weight.detach().clone()
    plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(0), 0, toy.ROWS))
    scaler.scale(plan.loss(loss)).backward()
    model.weight.grad[0, 0] = float("inf")
    sieve.step(optimizer, scaler=scaler, **limit)
    scaler.update()
    assert scaler.get_scale() == 2.0 ** 9 and torch.equal(model.weight, before)


@pytest.mark.parametrize("make", [sgd, adamw, fused])
def test_attached_to_an_optimiser_that_the_loop_steps(make):
    explicit = train("all_dropped", make)[0]
    model = toy.Model()
    sieve, optimizer = toy.published_sieve(), make([model.weight])
    handle = sieve.attach(optimizer)
    for number in range(toy.STEPS):
        plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number, "all_dropped"), 0, toy.ROWS))
        plan.loss(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(model.weight.detach(), explicit[number], rtol=1e-12, atol=0)
        assert sieve.last_step.skipped == (number == 2)
    assert sieve.clock == (toy.STEPS, 0)
    with pytest.raises(memsieve.ConfigError, match="attached"):
        sieve.attach(optimizer)
    handle.remove()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert sieve.clock == (toy.STEPS, 0) and not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


def test_weighed_predictions_have_the_gradient_of_the_weighed_loss():
    """For trainers that take the mean over the rows themselves."""
    model = toy.Model()
    step = toy.Step(0)
    rows = toy.rows_of(step, 0, toy.ROWS)
    plan, loss = toy.inspect(toy.published_sieve(), model, rows)
    plan.loss(loss).backward()
    expected, model.weight.grad = model.weight.grad, None
    prediction = model(rows["x"], rows["caption"])
    again, _ = toy.inspect(toy.published_sieve(), model, rows)
    weighed = again.weigh(prediction)
    assert torch.equal(weighed, prediction)
    (weighed - rows["target"]).square().mean().backward()
    torch.testing.assert_close(model.weight.grad, expected)


def test_tensors_in_place_of_callables():
    step = toy.Step(0)
    rows = toy.rows_of(step, 0, toy.ROWS)
    model = toy.Model()
    asked = []

    def null(k):
        assert not torch.is_grad_enabled() and k.dtype == torch.int64
        asked.append(k.tolist())
        return model(rows["x"][k], torch.zeros_like(rows["x"][k]))

    called, _ = toy.inspect(toy.published_sieve(), model, rows, null=null)
    given, _ = toy.inspect(toy.published_sieve(), model, rows, null=model(rows["x"], torch.zeros_like(rows["x"])))
    assert torch.equal(called.weights, given.weights) and 0 < called.weights.sum() < toy.ROWS
    assert asked == [list(range(toy.ROWS))]
    assert torch.equal(called.weights.double(), toy.weights_by_hand(step, model))


def test_exempt_and_uncaptioned_rows_are_left_alone():
    step = toy.Step(0, "one_rank")
    rows = toy.rows_of(step, 0, toy.ROWS)
    model = toy.Model()
    some = torch.zeros(toy.ROWS, dtype=torch.bool)
    some[:3] = True
    for more in ({"exempt": some}, {"has_caption": ~some}):
        weights = toy.inspect(toy.published_sieve(), model, rows, **more)[0].weights
        assert weights[:3].eq(1).all() and weights[3:6].eq(0).all()


def test_nothing_is_copied_or_changed():
    """Inputs stay as they are, and the loss is on their graph."""
    rows = toy.rows_of(toy.Step(0), 0, toy.ROWS)
    before = {name: (value.clone(), value.data_ptr(), value._version) for name, value in rows.items()}
    model = toy.Model()
    plan, loss = toy.inspect(toy.published_sieve(), model, rows)
    assert plan.loss(loss).grad_fn is not None
    for name, value in rows.items():
        clone, pointer, version = before[name]
        assert torch.equal(value, clone) and value.data_ptr() == pointer and value._version == version


@pytest.mark.parametrize("divide", [True, False])
def test_division_by_micro_batches_is_left_to_backward_if_it_divides(divide):
    model = toy.Model()
    sieve = toy.published_sieve(toy.ROWS, micro_batches=3, divide_loss=divide)
    plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(0, "none"), 0, toy.ROWS))
    assert torch.equal(plan.loss(loss), loss.mean() / 3 if divide else loss.mean())


def test_a_filter_written_in_python():
    """Options come from the configuration, and its scores are what the rule acts on."""
    seen = []

    @memsieve.filter(signals=["prediction_error"])
    def low_error(view, power=1.0, name="x", on=True, times=2):
        """Easy rows."""
        seen.append((power, name, on, times, view.elements))
        return -view.prediction_error ** power

    config = {**toy.PUBLISHED, "filters": {"low_error": {"power": 0.5, "name": "y", "times": 3}}, "threshold": {"kind": "fixed", "drop": -0.8}}
    sieve = memsieve.Sieve(config, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cpu", filters=[low_error])
    rows = toy.rows_of(toy.Step(0), 0, toy.ROWS)
    model = toy.Model()
    plan, loss = toy.inspect(sieve, model, rows, null=None)
    kept = -loss.detach().float().sqrt() <= -0.8
    assert seen == [(0.5, "y", True, 3, toy.DIM)] and 0 < kept.sum() < toy.ROWS
    assert torch.equal(plan.weights, kept.float())
    assert sieve.channels == ["low_error"] and sieve.counterfactuals == []
    with pytest.raises(memsieve.ConfigError, match="low_error.*powr.*power"):
        memsieve.Sieve({**config, "filters": {"low_error": {"powr": 1}}}, dataset_size=5, batch_size=5, filters=[low_error])


def test_reports():
    _, _, ends = train("random", sgd)
    model, sieve = toy.Model(), toy.published_sieve()
    plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(0), 0, toy.ROWS))
    plan.loss(loss).backward()
    sieve.step(sgd([model.weight]))
    report, = sieve.reports()
    dropped = int((plan.weights == 0).sum())
    assert (report.step, report.rows, report.dropped, report.probed, report.skipped) == (0, toy.ROWS, dropped, toy.ROWS, False)
    assert ends[0].grad_scale.item() == pytest.approx(report.weight / toy.ROWS) and len(report.raw[0]) == toy.ROWS
    assert sieve.reports() == []


def scaled_update(model, optimizer, scaler, overflow):
    """What a loop does after its last backward; `overflow`: with a gradient that the scaler refuses."""
    if overflow:
        model.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_attached_beside_a_scaler_that_finds_an_overflow():
    """The scaler does not step the optimiser then; the sieve's step ends all the same, and the next one is an ordinary one."""
    explicit = train("random", sgd)[0]
    model = toy.Model()
    sieve, optimizer = toy.published_sieve(), sgd([model.weight])
    sieve.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=1000)

    def step(number, overflow=False):
        plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number), 0, toy.ROWS))
        scaler.scale(plan.loss(loss)).backward()
        scaled_update(model, optimizer, scaler, overflow)

    step(0)
    step(1, overflow=True)
    torch.testing.assert_close(model.weight.detach(), explicit[0], rtol=1e-6, atol=1e-7)
    step(1)
    torch.testing.assert_close(model.weight.detach(), explicit[1], rtol=1e-6, atol=1e-7)
    assert sieve.clock[0] == 3 and scaler.get_scale() == 2.0 ** 9


@pytest.mark.parametrize("known", [True, False])
def test_attached_beside_a_scaler_that_finds_an_overflow_in_a_short_step(known):
    """The steps after it consist of their own micro-batches alone, or the sieve says that it cannot tell."""
    micro, rows = 4, toy.ROWS // 4
    model = toy.Model()
    sieve, optimizer = toy.published_sieve(rows, micro_batches=micro), sgd([model.weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=1000)
    handle = sieve.attach(optimizer, **({"scaler": scaler} if known else {}))

    def step(number, micros=micro, overflow=False):
        for m in range(micros):
            plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(number, "one_rank"), m * rows, (m + 1) * rows))
            scaler.scale(plan.loss(loss)).backward()
        scaled_update(model, optimizer, scaler, overflow)

    expected = toy.by_hand("one_rank")
    step(0)
    step(1, micros=2, overflow=True)
    torch.testing.assert_close(model.weight.detach(), expected[0], rtol=1e-6, atol=1e-7)
    if not known:
        before = model.weight.detach().clone()
        with pytest.raises(memsieve.DataError, match=r"step 2 has 2 micro-batches, not 4.*attach\(optimizer, scaler=scaler\)"):
            step(1)
        assert torch.equal(model.weight, before)
        return
    assert sieve.clock[0] == 2
    step(1)
    torch.testing.assert_close(model.weight.detach(), expected[1], rtol=1e-6, atol=1e-7)
    assert sieve.clock[0] == 3
    handle.remove()
    step_alone = sieve.clock
    scaler.scale(model.weight.sum()).backward()
    model.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    assert sieve.clock == step_alone


def test_attached_to_an_optimiser_of_accelerate_that_has_a_scaler():
    """A short step that overflows ends the sieve's step."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    Accelerator(cpu=True)
    model = toy.Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=1000)
    optimizer = AcceleratedOptimizer(sgd([model.weight]), scaler=scaler)
    sieve = toy.published_sieve(micro_batches=3)
    sieve.attach(optimizer)
    before = model.weight.detach().clone()
    plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(0), 0, toy.ROWS))
    scaler.scale(plan.loss(loss)).backward()
    model.weight.grad[0, 0] = float("inf")
    optimizer.step()
    assert sieve.clock[0] == 1 and optimizer.step_was_skipped and torch.equal(model.weight, before)


@pytest.mark.parametrize("make", [sgd, adamw, fused])
@pytest.mark.parametrize("overflow", [False, True])
def test_an_update_readied_for_a_scaler_to_make(make, overflow):
    """`skip` outlives what GradScaler.step finds out itself."""
    for skip in (0.0, 1.0):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = make([weight])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
        scaler.scale(weight.sum()).backward()
        if overflow:
            weight.grad[0] = float("inf")
        if not optimizers.is_fused(optimizer):
            scaler.unscale_(optimizer)
        undo = optimizers.before_update(optimizer, memsieve.StepEnd(torch.tensor(1.0), torch.tensor(skip), torch.tensor(0.0)), divided=False)
        scaler.step(optimizer)
        undo()
        scaler.update()
        assert torch.equal(weight.detach(), torch.ones(3)) == (overflow or skip > 0)
        assert scaler.get_scale() == 2.0 ** (9 if overflow else 10)
        if not skip:
            continue
        weight.grad = torch.ones(3)
        optimizer.step()
        assert not torch.equal(weight.detach(), torch.ones(3)), "nothing is left of it in the next step"


@pytest.mark.parametrize("make", [sgd, fused])
def test_an_update_left_out_after_unscale_leaves_the_next_step_alone(make):
    model, other = toy.Model(), toy.Model()
    sieve, optimizer = toy.published_sieve(), make([model.weight])
    plan, loss = toy.inspect(sieve, model, toy.rows_of(toy.Step(0, "all_dropped"), 0, toy.ROWS))
    plan.loss(loss).backward()
    sieve.unscale_(optimizer)
    optimizer.zero_grad()
    by_itself, plain = toy.published_sieve(), make([other.weight])
    for one, its_sieve, its_optimizer in ((model, sieve, optimizer), (other, by_itself, plain)):
        plan, loss = toy.inspect(its_sieve, one, toy.rows_of(toy.Step(1), 0, toy.ROWS))
        plan.loss(loss).backward()
        its_sieve.step(its_optimizer)
    assert sieve.clock[0] == 2 and torch.equal(model.weight, other.weight)
