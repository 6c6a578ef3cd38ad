"""What the patches of real trainers share."""
import torch


def of_rows(value, rows, batch_size):
    """`value` with each tensor in it whose first dimension is the batch's cut to `rows` ([k] int64); dicts, lists, tuples and dataclasses
    are gone through, all else is handed on as it is."""
    if isinstance(value, torch.Tensor):
        return value.index_select(0, rows.to(value.device)) if value.dim() > 0 and value.shape[0] == batch_size else value
    if isinstance(value, dict):
        return {key: of_rows(one, rows, batch_size) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(of_rows(one, rows, batch_size) for one in value))
    if isinstance(value, (list, tuple)):
        if len(value) == batch_size and not all(isinstance(one, torch.Tensor) and one.shape[:1] == (batch_size,) for one in value):
            return type(value)(value[row] for row in rows.tolist())  # one element a row: captions, say
        return type(value)(of_rows(one, rows, batch_size) for one in value)
    return value
