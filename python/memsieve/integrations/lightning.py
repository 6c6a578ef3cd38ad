"""Lightning (package lightning, or pytorch-lightning), with automatic optimisation.

    class Tune(LightningModule):
        def training_step(self, batch, batch_idx):
            ...
            plan = self.sieve.inspect(batch["sample_id"].cpu(), timesteps, prediction, target, start=...)
            return plan.loss(per_sample_loss)

    Trainer(callbacks=[SieveCallback("memsieve.yaml", dataset_size=len(dataset), batch_size=B)]).fit(...)
"""
try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

from memsieve import optimizers
from memsieve.sieve import Sieve


class SieveCallback(Callback):
    """Makes the sieve when training begins (`pl_module.sieve`, for this trainer's device and accumulation), ends its steps before
    gradients are clipped, and puts its state into Lightning's checkpoints. A skipped update leaves parameters and optimiser as they
    are; Lightning's learning-rate schedule moves on.

    Arguments are Sieve's. One optimiser. What goes wrong is raised in the optimiser's step, on every rank.
    """

    def __init__(self, config="default", **setup):
        self.sieve = None
        self._config, self._setup, self._state, self._undo = config, setup, None, None

    def setup(self, trainer, pl_module, stage):
        if stage == "fit":
            self.sieve = None  # that of an earlier fit

    def on_fit_start(self, trainer, pl_module):
        given = {"device": pl_module.device, "micro_batches": trainer.accumulate_grad_batches, "divide_loss": False, **self._setup}
        self.sieve = pl_module.sieve = Sieve(self._config, **given)
        if self._state is not None:
            self.sieve.load_state_dict(self._state)
            self._state = None

    def on_train_epoch_start(self, trainer, pl_module):
        self.sieve.epoch = trainer.current_epoch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        inner = optimizers.plain(optimizer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        end = self.sieve.end_step(() if scaler is not None else optimizers.gradients([inner]))
        if scaler is None:
            optimizers.divide([inner], end.grad_scale)  # before Lightning clips, also where the optimiser is fused
        self._undo = optimizers.before_update(inner, end, divided=scaler is None)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._undo_update()

    def on_exception(self, trainer, pl_module, exception):
        self._undo_update()

    def _undo_update(self):
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_fit_end(self, trainer, pl_module):
        self.sieve.flush()

    def state_dict(self):
        return self.sieve.state_dict() if self.sieve is not None else {}

    def load_state_dict(self, state_dict):
        if self.sieve is not None and state_dict:  # strategies that shard the model restore it after on_fit_start
            self.sieve.load_state_dict(state_dict)
        else:
            self._state = state_dict or None
