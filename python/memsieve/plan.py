"""What to do with the rows of one micro-batch."""
from __future__ import annotations

import torch
from torch import Tensor


class _WeighGradient(torch.autograd.Function):
    """The identity, whose gradient is weighed row by row."""

    @staticmethod
    def forward(ctx, prediction, weights):
        ctx.save_for_backward(weights)
        return prediction.view_as(prediction)

    @staticmethod
    def backward(ctx, gradient):
        weights, = ctx.saved_tensors
        return gradient * weights.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)), None


class Plan:
    """What to do with the rows of one micro-batch."""

    __slots__ = ("_plan", "_divided", "_batch_size")

    def __init__(self, plan, divided, batch_size):
        self._plan, self._divided, self._batch_size = plan, divided, batch_size

    @property
    def weights(self) -> Tensor | None:
        """[B] float32 on the training device: 1 = train on it, 0 = dropped, between = down-weighted. None for a batch that was
        beyond use; `Sieve.step` says why."""
        return self._plan.weights

    def loss(self, per_sample_loss: Tensor) -> Tensor:
        """The scalar to call backward on: the mean over the micro-batch of weight * per_sample_loss, divided by the number of
        micro-batches unless the sieve was made with `divide_loss=False`. Together with `Sieve.step`, which divides the gradient:
        sum(w*l) / sum(w) over all ranks and micro-batches.

        `per_sample_loss`: [B] floating, with gradient; weigh it by SNR or a mask of your own before, if you like. Call backward in
        every micro-batch on every rank, also where all rows were dropped. What is wrong with it is raised by `Sieve.step`.
        """
        return self._plan.divided_loss(per_sample_loss) if self._divided else self._plan.undivided_loss(per_sample_loss)

    def weigh(self, prediction: Tensor) -> Tensor:
        """For trainers whose loss takes the mean over the rows by itself: the prediction, as it is, whose gradient is that of the
        weighed mean. The loss that such a trainer reports is the unweighed one. It must be a sum over rows of something of each
        row's own prediction; what else is in it stays unweighed. Division by `micro_batches` is the trainer's.

        `prediction`: [B, ...] floating, as `inspect` was given it; the loss must be computed from what this returns.
        """
        weights = self.weights
        if weights is None or weights.shape[0] != prediction.shape[0]:
            return prediction  # beyond use, which `Sieve.step` says
        return _WeighGradient.apply(prediction, weights * (weights.shape[0] / self._batch_size))
