"""The rules that are compared: what `sieve:` holds, for each by its name."""

from copy import deepcopy

import yaml
from memsieve.reports.program import InputError

# Names of rules and the files that hold their `sieve:` mapping.
FILES = {"default": "default", "evidence2026": "evidence2026", "published": "demo_published", "iet_agc": "iet_agc",
         "selective_backprop": "selective_backprop"}
SIGNALS = {"start_gap": {}, "magnitude": {"norm": "rms", "scale": "log", "timestep_min": 600},
           "prediction_error": {"scale": "log"}, "caption_gain": {}}
RULES = ("off", *FILES, *(f"signal:{name}" for name in SIGNALS))
TITLES = {"off": "no filter", "default": "memsieve", "evidence2026": "memsieve 0.1", "published": "published rule",
          "iet_agc": "IET-AGC", "selective_backprop": "SelectiveBackprop"} | {f"signal:{name}": f"{name} alone" for name in SIGNALS}
# The published rule's level of 18 belongs to v-prediction at this size. With epsilon it drops as large a share of all rows.
OTHER_LEVELS = {("published", "e"): {"threshold": {"kind": "quantile", "drop": 0.937}}}
BLOCK = 16   # rows over which the probe budget is counted, as in configs/demo.yaml


class RuleMissing(InputError):
    """The rule's file is not in this tree."""


def mapping(root, name):
    path = root / "configs" / f"{name}.yaml"
    if not path.exists():
        raise RuleMissing(f"configs/{name}.yaml: no such file: the rule is skipped")
    try:
        sieve = (yaml.safe_load(path.read_text()) or {}).get("sieve")
    except yaml.YAMLError as error:
        raise InputError(f"{path}: cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(sieve, dict):
        raise InputError(f"{path}: no mapping `sieve:`")
    return sieve


def with_one_signal(sieve, name):
    """The same judge with one filter, with the options and, where there are any, the further keys that it has there."""
    named = sieve.get("filters", {}).get(name)
    return sieve | {"filters": {name: SIGNALS[name] if named is None else named}}


def sieve_of(root, rule, scenario):
    """The `sieve:` mapping of a rule in a scenario; None = no filter."""
    if rule not in RULES:
        raise InputError(f"--rule {rule}: no such rule; there are {', '.join(RULES)}")
    if rule == "off":
        return None
    kind, _, signal = rule.partition(":")
    sieve = deepcopy(mapping(root, FILES["default" if signal else kind]))
    if signal:
        sieve = with_one_signal(sieve, signal)
    sieve |= OTHER_LEVELS.get((rule, scenario.name), {})
    if sieve.get("evidence", {}).get("kind") != "visit":
        sieve.setdefault("block_rows", BLOCK)
        if scenario.pool:
            sieve["evidence"] = sieve.get("evidence", {}) | {"pool": "group"}
    return sieve
