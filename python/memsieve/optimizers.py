"""The end of a step: gradients that count the rows that were kept, and updates that do not happen when none was."""
from __future__ import annotations

import torch
from torch import Tensor


class StepEnd:
    """How a step ended; 0-dim float32 tensors on the training device, the same on every rank.

    grad_scale: what the gradients were divided by; exactly 1 when nothing was dropped.
    skip: 1 when the update was left out: every row of every rank was dropped, a NaN or Inf turned up, or an error.
    nonfinite: 1 when a NaN or Inf turned up.
    grad_norm: with `max_norm`, the norm before clipping; None without.
    """

    def __init__(self, grad_scale: Tensor, skip: Tensor, nonfinite: Tensor):
        self.grad_scale, self.skip, self.nonfinite = grad_scale, skip, nonfinite
        self.grad_norm: Tensor | None = None
        self._skipped: bool | None = None

    @property
    def skipped(self) -> bool:
        """`skip` as a bool: learning-rate schedules and EMA must not move either. On a GPU the host waits for it."""
        if self._skipped is None:
            self._skipped = bool(self.skip.item() > 0)
        return self._skipped

    def __repr__(self):
        return f"StepEnd(grad_scale={self.grad_scale}, skip={self.skip}, nonfinite={self.nonfinite})"


def plain(optimizer):
    """The torch optimiser inside accelerate's and Lightning's."""
    inner = getattr(optimizer, "optimizer", None)
    while inner is not None and hasattr(inner, "param_groups"):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def is_accelerated(optimizer):
    return hasattr(optimizer, "gradient_state") and hasattr(optimizer, "step_was_skipped")


def is_fused(optimizer):
    """Whether it obeys `grad_scale` and `found_inf` on the device, as torch's with fused=True do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def local(gradient):
    """This rank's shard of a DTensor (FSDP2)."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def gradients(optimizers):
    return [local(p.grad) for optimizer in optimizers for p in parameters(optimizer)]


@torch.no_grad()
def divide(optimizers, grad_scale):
    """Divides every gradient in place."""
    by_device = {}
    for gradient in gradients(optimizers):
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, of_device in by_device.items():
        torch._foreach_div_(of_device, grad_scale.to(device))


def clip(optimizers, max_norm):
    """torch's clip_grad_norm_ over all of them; returns the norm before, 0-dim."""
    return torch.nn.utils.clip_grad_norm_([p for optimizer in optimizers for p in parameters(optimizer)], max_norm)


def drop_gradients(optimizer):
    """An optimiser leaves parameters without a gradient, and their state, as they are."""
    for p in parameters(optimizer):
        p.grad = None


def unscale(scaler, optimizer):
    """GradScaler.unscale_, unless the loop has called it (to clip)."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


class AfterScaledStep:
    """Has `then` called after each scaler.step of the optimiser `inner`, also of those that left the update out; remove() ends that."""

    def __init__(self, scaler, inner, then):
        self._then = then
        original = scaler.step

        def step(optimizer, *args, **kwargs):
            result = original(optimizer, *args, **kwargs)
            if self._then is not None and plain(optimizer) is inner:
                self._then()
            return result

        scaler.step = step

    def remove(self):
        self._then = None  # the wrapper stays: another one may have been put around it since


def update(optimizer, end, divided, scaler=None):
    """One optimiser's step. `divided`: its gradients are divided by `grad_scale` already; where they are not, it must be fused."""
    inner = plain(optimizer)
    wrapped = is_accelerated(optimizer)
    if is_fused(inner):
        _fused_update(optimizer, inner, end, divided, None if wrapped else scaler)
    elif not end.skipped:
        scaler.step(optimizer) if scaler is not None and not wrapped else optimizer.step()
    elif wrapped and scaler is not None:
        scaler.update()
    if wrapped:
        tell_schedule(optimizer, inner, end)


def tell_schedule(optimizer, inner, end):
    """accelerate's schedules stay where `step_was_skipped` is true. Of a fused optimiser on a GPU the host does not know, nor wait."""
    skipped = (end.skip.is_cpu or not is_fused(inner)) and end.skipped
    if skipped or optimizer.scaler is None:
        optimizer._is_overflow = skipped


def _fused_update(optimizer, inner, end, divided, scaler):
    """`skip` and `grad_scale` are obeyed on the device."""
    if not divided:
        inner.grad_scale = end.grad_scale  # GradScaler multiplies it by its own
    handle = inner.register_step_pre_hook(lambda inner, *_: _join_skip(inner, end))
    try:
        scaler.step(optimizer) if scaler is not None else optimizer.step()
    finally:
        handle.remove()
        for name in ("grad_scale", "found_inf"):
            inner.__dict__.pop(name, None)


def _join_skip(inner, end):
    overflow = getattr(inner, "found_inf", None)  # set by GradScaler
    inner.found_inf = end.skip if overflow is None else torch.maximum(overflow, end.skip.to(overflow.device))


def before_update(inner, end, divided):
    """Readies an optimiser whose step is still to come, from the loop or from a GradScaler; returns what undoes it afterwards."""
    undo = in_update(inner, end, divided)
    if not is_fused(inner):
        return undo
    handle = inner.register_step_pre_hook(lambda inner, *_: _join_skip(inner, end))  # GradScaler.step sets `found_inf` anew

    def undo_all():
        handle.remove()
        undo()

    return undo_all


def in_update(inner, end, divided):
    """The same from a pre-hook of the step that it is for."""
    if not is_fused(inner):
        if not divided:
            divide([inner], end.grad_scale)
        if end.skipped:
            drop_gradients(inner)
        return lambda: None
    given = [name for name in ("grad_scale", "found_inf") if hasattr(inner, name)]
    if not divided:
        scale = getattr(inner, "grad_scale", None)
        inner.grad_scale = end.grad_scale if scale is None else scale * end.grad_scale.to(scale.device)
    _join_skip(inner, end)
    return lambda: [inner.__dict__.pop(name, None) for name in ("grad_scale", "found_inf") if name not in given]
