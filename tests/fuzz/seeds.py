"""Where the fuzz targets begin: texts in seeds/, and binary files that are made here."""
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "seeds"
PICTURE = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
           "empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [26, 26]}, "__metadata__": {"format": "pt"}}


def safetensors(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def plugin(stamp_size=52, machine_class=2):
    """An ELF file with three sections: none, the stamp, and their names."""
    names = b"\0.memsieve_stamp\0.shstrtab\0"
    stamp = struct.pack("<8siii32s", b"msieve", 2, 1016, 1, b"2.11.0")[:stamp_size].ljust(stamp_size, b"\0")
    at_stamp, at_names = 64, 64 + len(stamp)
    at_table = at_names + len(names)
    header = struct.pack("<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", machine_class, 1, 1, 0, 0, 3, 62, 1, 0, 0, at_table, 0, 64, 0, 0, 64, 3, 2)
    table = b"".join(struct.pack("<IIQQQQIIQQ", *section) for section in (
        (0,) * 10, (1, 1, 2, 0, at_stamp, len(stamp), 0, 0, 1, 0), (17, 3, 0, 0, at_names, len(names), 0, 0, 1, 0)))
    return header + stamp + names + table


MADE = {
    "safetensors": {"three": safetensors(PICTURE, bytes(26)), "none": safetensors({}, b""), "short": safetensors(PICTURE, bytes(20)),
                    "twice": safetensors({}, b"").replace(b"{}", b"  ") + b"{}"},
    "plugin_stamp": {"stamp": plugin(), "other_size": plugin(40), "32_bit": plugin(machine_class=1)},
    "dataset": {"good": b"\0", "plan": bytes(range(0, 256, 3)) * 4, "odd": bytes(range(255, 150, -1)) * 3},
    "ledger": {"good": b"\0", "plan": bytes(range(0, 256, 5)) * 2, "odd": bytes(range(255, 130, -2))},
    "rendezvous": {"plan": bytes(range(0, 256, 3)) * 3, "reads": bytes([5, 2, 1, 4, 0, 3]) * 20},
}


def folders(target, made_in):
    """Folders with the seeds of a target; those that are made come to `made_in`."""
    made = made_in / target
    made.mkdir(parents=True, exist_ok=True)
    for name, data in MADE.get(target, {}).items():
        (made / name).write_bytes(data)
    return [folder for folder in (HERE / target, made) if folder.is_dir()]
