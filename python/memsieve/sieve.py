"""The sieve as a Python loop uses it."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from memsieve import _core, arguments, forks, optimizers
from memsieve.errors import ConfigError, DataError
from memsieve.plan import Plan

# What a prediction under another condition is given as: all of the batch's rows, or a callable for some of them.
Prediction = Tensor | Callable[[Tensor], Tensor]


class Sieve:
    """Measures rows, judges which are memorised, and weighs them.

    config: path of a YAML file with a `sieve:` mapping; or that mapping as a dict; or the name of a rule of the package
        (`memsieve.rules()`).
    dataset_size: samples in the training set; ids lie in [0, dataset_size).
    batch_size: rows of one micro-batch on one rank; smaller ones are fine.
    samples: how many there are where ids leave gaps in [0, dataset_size), as those of `memsieve.id_of` do; None = dataset_size.
    micro_batches: micro-batches in one optimiser step (gradient accumulation).
    num_timesteps: timesteps lie in [0, num_timesteps).
    held_out_size: pictures kept out of training, 0 = none.
    group_ids: int64 [dataset_size], copies of one picture share an id; None = every sample its own.
    strata: kinds of rows that are compared each with its own.
    device: where predictions live; None = the current GPU if there is one and the group serves it, else the CPU.
    group: a torch.distributed.ProcessGroup; None = the default group if it is initialised, else one process alone.
    ledger: HDF5 file to write (rank 0), None = none.
    run_id: written to the ledger.
    overrides: "sieve.threshold.drop=0.05" and the like; they win over the configuration.
    filters: filters written in Python (`memsieve.filter`).
    divide_loss: whether `Plan.loss` divides by `micro_batches`; False where backward does (accelerate's, Lightning's).

    COLLECTIVE: every rank of the group makes it with the same arguments. Raises ConfigError, on every rank.
    """

    def __init__(self, config: str | os.PathLike | dict = "default", *, dataset_size: int, batch_size: int, samples: int | None = None,
                 micro_batches: int = 1, num_timesteps: int = 1000, held_out_size: int = 0,
                 group_ids: Tensor | Sequence[int] | None = None, strata: int = 1, device: torch.device | str | None = None, group: Any = None,
                 ledger: str | os.PathLike | None = None, run_id: str = "", overrides: Sequence[str] = (), filters: Sequence[Any] = (),
                 divide_loss: bool = True):
        group = arguments.group_of(group)
        self.device = arguments.device_of(device, group)
        text, source = arguments.configuration_of(config)
        words = dict(dataset_size=dataset_size, samples=samples, batch_size=batch_size, micro_batches=micro_batches,
                     num_timesteps=num_timesteps, held_out_size=held_out_size, group_ids=group_ids, strata=strata, device=self.device,
                     ledger="" if ledger is None else os.fspath(ledger), run_id=run_id, overrides=list(overrides),
                     filters=[one.entry() for one in filters])
        self._core = _core.Sieve(text, source, group, arguments.checked_numbers(words))
        forks.watch(self)
        self.dataset_size, self.num_timesteps = dataset_size, num_timesteps
        self.batch_size, self.micro_batches = batch_size, micro_batches
        self.group, self.epoch = group, 0
        self._step = self._seen = 0
        self._divide_loss = divide_loss
        self._ended = None  # (StepEnd) of a step whose gradients are divided, but whose update is still to come
        self._attached = None
        self._passed_over = {}
        self.last_step: optimizers.StepEnd | None = None
        self._told = set()
        self._warn()

    # -- a step ---------------------------------------------------------------------------------------------------------------

    def inspect(self, ids: Tensor | Sequence[int], timesteps: Tensor, prediction: Tensor, target: Tensor, *, null: Prediction | None = None,
                start: Prediction | None = None, guidance: Prediction | None = None, counterfactuals: dict[str, Prediction] | None = None,
                has_caption: Tensor | None = None, exempt: Tensor | None = None, stratum: Tensor | None = None,
                likeness: Tensor | None = None) -> Plan:
        """Measures and judges one micro-batch of B rows; returns its Plan. Local: no rank waits for another; but after `attach` without
        the scaler, the first call after a step whose update a GradScaler left out ends that step: COLLECTIVE then, and raises what
        `step` raises.

        ids: [B] int64 on the CPU, in [0, dataset_size): which sample each row is.
        timesteps: [B] integer or float, any device, in [0, num_timesteps); with flow matching multiply a time in [0, 1) by it.
        prediction: [B, C, ...] of any floating type, on the sieve's device: what the model predicts with the caption.
        target: like prediction.
        null, start, guidance: what would be predicted with the empty caption, by the starting model, at another embedded guidance
            scale: a callable that takes row numbers [k] int64 on the device and returns [k, C, ...], run without gradient, at most once
            a batch; or a tensor like prediction. Only those of `Sieve.counterfactuals` are needed.
        counterfactuals: others, by name.
        has_caption: [B] bool; rows under caption dropout (False) are not measured.
        exempt: [B] bool; rows to leave alone: weight 1, no score.
        stratum: [B] int64 in [0, strata); z-scores compare rows of one stratum.
        likeness: [B, F] floating; features that are alike for copies of one picture (`probe.likeness`).

        Tensors are read, not copied, and never changed. What goes wrong, in a callable too, is raised by `step`, on every rank.
        """
        self._ended = None  # of an earlier step, whose update the loop left out
        self._close_unfinished_step()
        if self._seen >= self.micro_batches:
            raise DataError(f"Sieve.inspect: call {self._seen + 1} in step {self._step}, but micro_batches is {self.micro_batches}; call "
                            "Sieve.step after the last backward of each step, or say how many micro-batches one has")
        self._seen += 1
        batch = self._batch(ids, timesteps, prediction, target, null, start, guidance, counterfactuals, has_caption, exempt,
                            stratum, likeness)
        return Plan(self._core.inspect(batch, self._clock()), self._divide_loss, self.batch_size)

    def step(self, optimizer: Any, *, scaler: Any = None, max_norm: float | None = None,
             check_gradients: bool = True) -> optimizers.StepEnd | None:
        """Ends the step, after the last backward: divides the gradient by the rows that were kept, and calls the optimiser's step
        unless the update is to be skipped. Returns a StepEnd.

        optimizer: any torch.optim.Optimizer, or a list of them, or accelerate's; in a micro-batch in which accelerate does not
            synchronise gradients nothing happens, and None is returned. With fused=True the host waits for nothing; other optimisers
            on a GPU make it read one flag.
        scaler: a torch.amp.GradScaler that the loss was scaled with; call its `update` afterwards, as ever.
        max_norm: clips the divided gradient to this norm.
        check_gradients: whether a NaN or Inf in the gradient counts (`on_nonfinite`); never with a scaler, which waits for some.

        COLLECTIVE: one gather of fixed size. Raises on every rank at the same step (on a GPU two steps later): on the rank at fault what
        went wrong there, DataError or what its own callable raised; on the others PeerError; NonFiniteError on all.
        """
        several = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        if optimizers.is_accelerated(several[0]):
            scaler = several[0].scaler
            if not several[0].gradient_state.sync_gradients:
                several[0].step()
                return None
        inner = [optimizers.plain(one) for one in several]
        end, divided = self._end_of(inner, scaler, check_gradients)
        if not divided and (max_norm is not None or not all(map(optimizers.is_fused, inner))):
            self._divide(inner, end, scaler)
            divided = True
        if max_norm is not None:
            end.grad_norm = optimizers.clip(inner, max_norm)
        for one in several:
            optimizers.update(one, end, divided, scaler)
        return end

    def unscale_(self, optimizer: Any, *, scaler: Any = None, check_gradients: bool = True) -> optimizers.StepEnd:
        """Ends the step and divides the gradients, as GradScaler.unscale_ does, so that they can be clipped or looked at; then call
        `step`, or leave this update out. COLLECTIVE, like `step`, and raises what it raises."""
        inner = [optimizers.plain(one) for one in (optimizer if isinstance(optimizer, (list, tuple)) else [optimizer])]
        end, divided = self._end_of(inner, scaler, check_gradients)
        if not divided:
            self._divide(inner, end, scaler)
        self._ended = end
        return end

    def end_step(self, gradients: Iterable[Tensor] = ()) -> optimizers.StepEnd:
        """Ends the step for a loop with an update of its own; returns a StepEnd: divide the gradients by `grad_scale`, and leave
        everything as it is where `skip` is 1. `gradients`: those of the update, reduced over the ranks or this rank's shard of them.
        COLLECTIVE, like `step`, and raises what it raises."""
        if self._seen == 0:
            self.fail(DataError(f"Sieve.step: no micro-batch was inspected in step {self._step}; call Sieve.inspect first, on every rank"))
        clock = self._clock()
        passed = self._passed_over.pop(self._step, None)
        if passed:
            self._core.pass_over(passed, clock)
        self._seen = 0
        self._step += 1
        end = self._core.end_step(clock, list(gradients))
        first, self.last_step = self.last_step is None, optimizers.StepEnd(end.grad_scale, end.skip, end.nonfinite)
        if first:
            self._warn()
        return self.last_step

    def attach(self, optimizer: Any, *, scaler: Any = None) -> _Handle:
        """For loops that call the optimiser's step themselves: from now on each of its steps ends the sieve's, with gradients divided
        and `skip` obeyed. Returns a handle whose `remove()` ends that. Clipping that comes before sees the undivided gradient.

        scaler: the GradScaler whose `step` the loop calls; accelerate's optimisers bring theirs. That `step` ends the sieve's also where it
            finds an overflow and leaves the update out. Without the scaler such a step ends once more than `micro_batches` were inspected;
            if the next update then has fewer, which micro-batches belong to it is unknown, and it raises DataError.

        COLLECTIVE like `step` is each optimizer.step(), or scaler.step(optimizer), which raises what it raises."""
        inner = optimizers.plain(optimizer)
        if self._attached is not None:
            raise ConfigError("Sieve.attach: it is attached to an optimiser already; remove() the handle first")
        if scaler is None and optimizers.is_accelerated(optimizer):
            scaler = optimizer.scaler
        undo = []

        def before(inner, *_):
            if self._attached.guessed and 0 < self._seen < self.micro_batches:
                self.fail(DataError(f"Sieve.attach: step {self._step} has {self._seen} micro-batches, not {self.micro_batches}, after one that "
                                    "the optimiser did not step, so which belong to it is unknown; if a GradScaler left that update out, say "
                                    "Sieve.attach(optimizer, scaler=scaler)"))
            self._attached.guessed = False
            scaled = getattr(inner, "found_inf", None) is not None
            end, divided = self._end_of([inner], scaled or None, not scaled)
            undo.append(optimizers.in_update(inner, end, divided))
            if optimizers.is_accelerated(optimizer):
                optimizers.tell_schedule(optimizer, inner, end)

        def after(*_):
            while undo:
                undo.pop()()

        def after_scaled():
            if self._seen:  # it found an overflow and did not step the optimiser: on any rank, since they share the gradient
                self.end_step()

        hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
        if scaler is not None:
            hooks.append(optimizers.AfterScaledStep(scaler, inner, after_scaled))
        self._attached = _Handle(self, hooks, guesses=scaler is None)
        return self._attached

    def fail(self, error: BaseException) -> None:
        """Carries an exception of the loop's own to `step`, which raises it on this rank and PeerError on the others, so that none
        waits for a rank that has given up. The first of a step counts."""
        self._core.fail(error)

    # -- held-out pictures, flagged samples, the starting model ------------------------------------------------------------------

    def held_out_visits(self) -> list[_core.HeldOutVisit]:
        """The held-out rows that this rank should observe in this step, HeldOutVisit each: always as many, or none in the steps
        between those that `held_out.every` names."""
        return self._core.held_out_visits(self._step)

    def observe(self, ids: Tensor | Sequence[int], timesteps: Tensor, prediction: Tensor, target: Tensor, **more: Any) -> None:
        """Measures held-out rows, `ids` those of held_out_visits(); other arguments as for `inspect`. Predict without gradient, before
        `step`, which raises what goes wrong. Local."""
        self._core.observe(self._batch(ids, timesteps, prediction, target, **more), self._clock())

    def flagged(self, step: int | None = None) -> Tensor:
        """[dataset_size] bool on the CPU: samples that the batch of `step` (None = the step to come) should pass over, for up to five
        steps ahead; the same on every rank. None are with `action.pass_over: false`. Raises DataError for another step."""
        return self._core.flagged(self._step if step is None else step)

    def pass_over(self, ids: Iterable[int], step: int | None = None) -> None:
        """Tells that the visits of samples `ids`, a list of ints, were passed over in `step` (None = this one), the same on every rank:
        for the ledger. Before that step's end, which raises what is wrong with them."""
        self._passed_over.setdefault(self._step if step is None else step, []).extend(int(one) for one in ids)

    def looks(self) -> list[_core.Look]:
        """The flagged samples that this rank should look at again in this step, Look each: always as many, or none in the steps between
        those that `revisit.every` names."""
        return self._core.looks(self._step)

    def look(self, ids: Tensor | Sequence[int], timesteps: Tensor, prediction: Tensor, target: Tensor, **more: Any) -> None:
        """Measures the rows that looks() named, all of them, in its order; arguments as for `inspect`. Predict without gradient, before
        `step`, which raises what goes wrong. Local."""
        self._core.look(self._batch(ids, timesteps, prediction, target, **more), self._clock())

    @property
    def reference_draws(self) -> int:
        """How many draws of each picture the starting model is asked for before training, 0 = none. Draw d uses timestep
        (d + 0.5) / draws * num_timesteps."""
        return self._core.reference_draws()

    def reference(self, ids: Tensor | Sequence[int], timesteps: Tensor, prediction: Tensor, target: Tensor, *, held_out: bool = False,
                  **more: Any) -> bool:
        """Before training: what the starting model finds easy. Every training sample and every held-out picture (`held_out`, ids =
        its index) once per draw, divided over the ranks in any way. False: something went wrong; finish_reference() raises it. Local."""
        return self._core.reference(self._batch(ids, timesteps, prediction, target, **more), held_out)

    def finish_reference(self) -> None:
        """Ends the pass before training. COLLECTIVE. Raises PeerError, or DataError if a picture was never drawn."""
        self._core.finish_reference()

    # -- what it knows ------------------------------------------------------------------------------------------------------------

    @property
    def clock(self) -> tuple[int, int]:
        """(step, epoch): the optimiser step to come, skipped ones counted, and `epoch` as the loop has set it."""
        return self._step, self.epoch

    @property
    def counterfactuals(self) -> list[str]:
        """Names of the predictions that the configured filters read: what `inspect` must be given."""
        return self._core.counterfactuals()

    @property
    def channels(self) -> list[str]:
        """Names of the configured filters."""
        return self._core.channels()

    def warnings(self) -> list[str]:
        """Why this configuration will never drop anything, what the ledger has lost, and, once a step has ended, that no batch had the
        `likeness` that the rule asks for; usually none. What there is at the start and after the first step is warned of by itself."""
        return self._core.warnings()

    def reports(self) -> list[_core.StepReport]:
        """StepReports of the steps since the last call, oldest first; on a GPU those up to two steps ago."""
        return self._core.take_reports()

    def flush(self) -> None:
        """Waits for outstanding steps, raises their errors as `step` would, and brings the ledger to the disk. On every rank at the
        same step."""
        self._core.flush()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: CPU tensors and bytes, the same on every rank. On every rank at the same step. torch.save,
        accelerate's register_for_checkpointing and torch.distributed.checkpoint carry it."""
        self.flush()
        state = self._core.state()
        if "flags_recent" in state:  # of no fixed length, which a distributed checkpoint does not take
            state["flags_recent"] = state["flags_recent"].numpy().tobytes()
        state["clock"] = torch.tensor([self._step, self.epoch], dtype=torch.int64)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state, on every rank before the first step, with the configuration that it was made with. The ledger is cut back
        to it. Raises DataError."""
        if self._step or self._seen:
            raise DataError(f"Sieve.load_state_dict: this sieve is at step {self._step} already; make a new one and load that")
        state = {name: value for name, value in state.items() if not name.startswith("_")}
        clock = state.pop("clock", None)
        if not isinstance(clock, torch.Tensor) or clock.shape != (2,):
            raise DataError("sieve state: 'clock' is missing; the checkpoint is torn or from another version")
        if isinstance(state.get("flags_recent"), (bytes, bytearray)):
            data = bytearray(state["flags_recent"])
            if len(data) % 32 != 0:  # rows of four float64
                raise DataError(f"sieve state: 'flags_recent' has {len(data)} bytes, which is no multiple of 32; the checkpoint is torn "
                                "or from another version")
            recent = torch.frombuffer(data, dtype=torch.float64) if data else torch.empty(0, dtype=torch.float64)
            state["flags_recent"] = recent.reshape(-1, 4)
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise DataError(f"sieve state: '{name}' is a {type(value).__name__}, not a tensor; the checkpoint is torn or from "
                                "another version")
        self._core.restore(state)
        self._step, self.epoch = (int(one) for one in clock)

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _warn(self):
        news = [line for line in self.warnings() if line not in self._told]
        self._told.update(news)
        for line in news:
            warnings.warn(line, stacklevel=3)

    def _clock(self):
        return _core.Clock(self._step, self.epoch)

    @staticmethod
    def _batch(ids, timesteps, prediction, target, null=None, start=None, guidance=None, counterfactuals=None, has_caption=None,
                   exempt=None, stratum=None, likeness=None):
        named = {"null": null, "start": start, "guidance": guidance, **(counterfactuals or {})}
        given = {name: value for name, value in named.items() if value is not None}
        return _core.Arguments(ids, timesteps, prediction, target, given, has_caption, exempt, stratum, likeness)

    def _end_of(self, inner, scaler, check_gradients):
        """(StepEnd, whether unscale_() has divided the gradients by it)."""
        if self._ended is not None:
            end, self._ended = self._ended, None
            return end, True
        checked = optimizers.gradients(inner) if check_gradients and scaler is None else ()
        return self.end_step(checked), False

    def _divide(self, inner, end, scaler):
        if scaler is not None:
            for one in inner:
                optimizers.unscale(scaler, one)
        optimizers.divide(inner, end.grad_scale)

    def _close_unfinished_step(self):
        """A scaler that `attach` was not given found an overflow and did not call the attached optimiser's step."""
        if self._attached is not None and self._attached.guesses and self._seen >= self.micro_batches:
            self._attached.guessed = True
            self.end_step()


class _Handle:
    """Ends Sieve.attach."""

    def __init__(self, sieve, hooks, guesses):
        self._sieve, self._hooks = sieve, hooks
        self.guesses = guesses  # where a step ended that the optimiser did not make, from the number of micro-batches alone
        self.guessed = False    # the end of the step before

    def remove(self):
        for hook in self._hooks:
            hook.remove()
        self._sieve._attached = None
