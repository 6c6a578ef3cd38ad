"""What Sieve makes of its arguments."""
import json
import os

import torch

from memsieve import _rules
from memsieve.errors import ConfigError


def group_of(group):
    distributed = torch.distributed
    if group is not None:
        if isinstance(group, distributed.ProcessGroup):
            try:
                distributed.get_rank(group)
            except (ValueError, RuntimeError) as error:
                raise ConfigError(f"group: torch.distributed does not know it ({str(error).splitlines()[0].rstrip('.')}); make the sieve "
                                  "while its group is open, of a group that init_process_group or new_group gave") from None
        return group
    return distributed.group.WORLD if distributed.is_available() and distributed.is_initialized() else None


def device_of(device, group):
    """With its index: the bindings compare it with that of predictions."""
    if device is None:
        serves = group is None or not hasattr(group, "_device_types") or any(one.type == "cuda" for one in group._device_types)
        device = "cuda" if torch.cuda.is_available() and serves else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Sieve: device {device!r} is none: {str(error).splitlines()[0]}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def configuration_of(config):
    """(YAML text, its name in messages); no text: the name is a file that the library reads."""
    if isinstance(config, dict):
        whole = config if set(config) == {"sieve"} else {"sieve": config}
        try:
            return json.dumps(whole, allow_nan=False), "the dict"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Sieve: the dict cannot be written as YAML: {error}") from None
    try:
        path = os.fspath(config)
    except TypeError:
        raise ConfigError(f"Sieve: config is a {type(config).__name__}; it must be a path, a dict, or one of the rules "
                          f"{', '.join(_rules.rules())}") from None
    return None, str(_rules.rule(path) if path in _rules.rules() and not os.path.exists(path) else path)


def checked_numbers(words):
    """`words` as they are, once each of these is a whole number."""
    names = ["dataset_size", "batch_size", "micro_batches", "num_timesteps", "held_out_size", "strata"]
    for name in names + (["samples"] if words["samples"] is not None else []):
        if isinstance(words[name], bool) or not isinstance(words[name], int):
            raise ConfigError(f"Sieve: {name} is a {type(words[name]).__name__}; it must be an int")
    return words
