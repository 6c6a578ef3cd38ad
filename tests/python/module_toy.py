"""The toy of the Python module's tests: a denoiser with one weight matrix, in float64, so that a row's signals do not depend on the rows
beside it."""

import memsieve
import torch

DIM, ROWS, STEPS, MICRO, SAMPLES = 6, 24, 6, 2, 50
LEVEL = 2.0
# One threshold on the magnitude of each row, whatever came before.
PUBLISHED = {"filters": {"magnitude": {}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
             "threshold": {"kind": "fixed", "drop": LEVEL}}


class Step:
    """All rows of one optimiser step over all ranks: [micro][rank][row] flattened."""

    def __init__(self, number, kind="random"):
        generator = torch.Generator().manual_seed(11 * 1000003 + number)
        self.ids = torch.randint(SAMPLES, (ROWS,), generator=generator)
        self.t = torch.randint(1000, (ROWS,), generator=generator)
        self.x = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
        size = torch.randint(4, (ROWS, 1), generator=generator) + 0.1
        self.caption = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64) * size
        self.target = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
        if kind == "all_dropped" and number == 2:
            self.caption.fill_(50)
        if kind == "one_rank":  # the first quarter of each micro-batch: all of rank 0's rows on 4 ranks, half of them on 2
            for micro in range(MICRO):
                first = micro * ROWS // MICRO
                self.caption[first:first + ROWS // MICRO // 2] = 50
        if kind == "none":
            self.caption.mul_(1e-3)
        if kind == "nan" and number == 3:
            self.x[5] = float("nan")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(DIM, dtype=torch.float64) * 0.5 + 0.1)

    def forward(self, x, caption):
        return (x + 0.5 * caption) @ self.weight


def rows_of(step, first, last):
    return {name: getattr(step, name)[first:last] for name in ("ids", "t", "x", "caption", "target")}


def inspect(sieve, model, rows, plain=None, **more):
    """(plan, loss of each row); `plain`: the model that predictions on request come from."""
    prediction = model(rows["x"], rows["caption"])
    plain = plain or model

    def null(k):
        return plain(rows["x"][k], torch.zeros_like(rows["x"][k]))

    plan = sieve.inspect(rows["ids"], rows["t"], prediction, rows["target"], **{"null": null, **more})
    return plan, (prediction - rows["target"]).square().mean(1)


def weights_by_hand(step, model):
    with torch.no_grad():
        magnitude = (model(step.x, step.caption) - model(step.x, torch.zeros_like(step.x))).norm(dim=1)
    return (magnitude.float() <= LEVEL).double()


def by_hand(kind, steps=STEPS, rate=0.1):
    """Weights after each step of one rank that holds all rows and has no sieve."""
    model, history = Model(), []
    for number in range(steps):
        step = Step(number, kind)
        weight = weights_by_hand(step, model)
        loss = (model(step.x, step.caption) - step.target).square().mean(1)
        if weight.sum() > 0:
            gradient, = torch.autograd.grad((weight * loss).sum() / weight.sum(), model.weight)
            with torch.no_grad():
                model.weight -= rate * gradient
        history.append(model.weight.detach().clone())
    return history


def published_sieve(rows=ROWS, **more):
    return memsieve.Sieve(PUBLISHED, **{"dataset_size": SAMPLES, "batch_size": rows, "device": "cpu", **more})


def train(kind, make_optimizer, *, micro=1, step=None, **setup):
    """Weights after each step, the optimiser, and how the steps ended."""
    model = Model()
    sieve = published_sieve(ROWS // micro, micro_batches=micro, **setup)
    optimizer = make_optimizer([model.weight])
    history, ends = [], []
    for number in range(STEPS):
        rows = ROWS // micro
        for m in range(micro):
            plan, loss = inspect(sieve, model, rows_of(Step(number, kind), m * rows, (m + 1) * rows))
            plan.loss(loss).backward()
        ends.append(step(sieve, optimizer) if step else sieve.step(optimizer))
        optimizer.zero_grad()
        history.append(model.weight.detach().clone())
    return history, optimizer, ends


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)
