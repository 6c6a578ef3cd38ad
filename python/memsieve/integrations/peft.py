"""PEFT, and diffusers' models that carry its adapters: the starting model is the one that is trained, its adapters off.

    plan = sieve.inspect(ids, timesteps, model_pred, target,
                         start=adapters_off(unet, lambda rows: unet(noisy[rows], timesteps[rows], text[rows]).sample))
"""
import contextlib


@contextlib.contextmanager
def without_adapters(model):
    """The adapters of `model` are off inside: a peft.PeftModel, a diffusers model after add_adapter, or either of them wrapped (DDP,
    torch.compile). What was trainable before is so again afterwards."""
    inner = model
    while not hasattr(inner, "disable_adapter") and not hasattr(inner, "disable_adapters"):
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if wrapped is None:
            raise TypeError(f"{type(model).__name__} has no adapters to turn off: neither a peft.PeftModel nor a diffusers model after add_adapter")
        inner = wrapped
    trainable = [(p, p.requires_grad) for p in inner.parameters()]  # PEFT turns on what is active, also what was frozen on purpose
    try:
        if hasattr(inner, "disable_adapter"):
            with inner.disable_adapter():
                yield
        else:
            inner.disable_adapters()
            try:
                yield
            finally:
                inner.enable_adapters()
    finally:
        for parameter, was in trainable:
            if parameter.requires_grad != was:
                parameter.requires_grad_(was)


def adapters_off(model, predict):
    """For `start=`: `predict(rows)` with the adapters of `model` off."""

    def start(rows):
        with without_adapters(model):
            return predict(rows)

    return start
