"""The Lightning callback trains as by hand, whatever the optimiser, and its state comes back however the strategy restores it."""
import module_toy as toy
import pytest
import torch

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: E402
from memsieve.integrations.lightning import SieveCallback  # noqa: E402
from module_toy import sgd  # noqa: E402

SCALE = 2.0 ** 10


def fused_sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, fused=True)


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, 0.1, fused=True)


class Tune(lightning.LightningModule):
    """Keeps its weights after each step in `history`; `overflow`: the step whose gradient is made infinite."""

    def __init__(self, kind, make_optimizer, overflow=None):
        super().__init__()
        self.model, self.kind, self.make_optimizer, self.overflow = toy.Model(), kind, make_optimizer, overflow
        self.history = []

    def training_step(self, batch, batch_idx):
        plan, loss = toy.inspect(self.sieve, self.model, toy.rows_of(toy.Step(self.global_step, self.kind), 0, toy.ROWS))
        return plan.loss(loss)

    def on_after_backward(self):
        if self.global_step == self.overflow:
            self.model.weight.grad[0, 0] = float("inf")

    def on_train_batch_end(self, *_):
        self.history.append(self.model.weight.detach().clone())

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def trainer_of(callback, epochs=2, **more):
    """Epochs of half the toy's steps."""
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[callback], **quiet, **more)


def sieve_callback():
    return SieveCallback(toy.PUBLISHED, dataset_size=toy.SAMPLES, batch_size=toy.ROWS)


def fit(kind, make_optimizer, overflow=None, **more):
    tune = Tune(kind, make_optimizer, overflow)
    trainer_of(sieve_callback(), **more).fit(tune, range(toy.STEPS // 2))
    assert len(tune.history) == toy.STEPS
    return tune


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000))]}


@pytest.mark.parametrize("kind", ["random", "all_dropped"])
@pytest.mark.parametrize("make", [sgd, fused_sgd])
@pytest.mark.parametrize("precision", [dict, scaled])
def test_trains_as_by_hand(kind, make, precision):
    for mine, hand in zip(fit(kind, make, **precision()).history, toy.by_hand(kind)):
        torch.testing.assert_close(mine, hand, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", [dict, scaled])
def test_all_dropped_leaves_a_fused_optimiser_as_it_is(precision):
    tune = fit("all_dropped", fused_adamw, **precision())
    assert torch.equal(tune.history[2], tune.history[1]) and not torch.equal(tune.history[3], tune.history[2])
    optimizer = tune.optimizers().optimizer
    assert optimizer.state[tune.model.weight]["step"] == toy.STEPS - 1
    assert not optimizer._optimizer_step_pre_hooks and not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("make", [sgd, fused_sgd])
def test_an_overflow_leaves_the_update_out(make):
    history = fit("random", make, overflow=2, **scaled()).history
    assert torch.equal(history[2], history[1]) and not torch.equal(history[3], history[2])


@pytest.mark.parametrize("kind", ["random", "one_rank"])
def test_clipping_sees_the_divided_gradient(kind):
    limit = 0.05
    expected = toy.train(kind, sgd, step=lambda sieve, optimizer: sieve.step(optimizer, max_norm=limit))[0]
    for make in (sgd, fused_sgd):
        for mine, other in zip(fit(kind, make, gradient_clip_val=limit).history, expected):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


class RestoresLate(SingleDeviceStrategy):
    """As the strategies that shard the model (FSDP, DeepSpeed)."""

    @property
    def restore_checkpoint_after_setup(self):
        return True


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, RestoresLate])
def test_a_resumed_run_goes_on_with_the_sieve_it_had(strategy, tmp_path):
    whole, half, again = (sieve_callback() for _ in range(3))
    trainer_of(whole).fit(Tune("random", sgd), range(toy.STEPS // 2))
    trainer = trainer_of(half, epochs=1)
    trainer.fit(Tune("random", sgd), range(toy.STEPS // 2))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer_of(again, strategy=strategy("cpu")).fit(Tune("random", sgd), range(toy.STEPS // 2), ckpt_path=tmp_path / "half.ckpt")
    mine, expected = again.state_dict(), whole.state_dict()
    assert again.sieve.clock == whole.sieve.clock == (toy.STEPS, 1) and mine.keys() == expected.keys()
    assert all(torch.equal(mine[name].nan_to_num(-7), expected[name].nan_to_num(-7)) for name in mine if isinstance(mine[name], torch.Tensor))


def test_a_callback_that_has_fitted_before_takes_up_a_checkpoint(tmp_path):
    callback = sieve_callback()
    trainer = trainer_of(callback, epochs=1)
    trainer.fit(Tune("random", sgd), range(toy.STEPS // 2))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer_of(callback).fit(Tune("random", sgd), range(toy.STEPS // 2), ckpt_path=tmp_path / "half.ckpt")
    assert callback.sieve.clock == (toy.STEPS, 1)
