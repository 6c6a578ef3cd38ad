#!/usr/bin/env python3
"""Makes prompts for memsieve-audit (docs/audit.md) from a file of the demo's data set: its captions, each once, with their
pictures, their tokens, what make_caption_tower.py predicts from a picture and, if asked for, variants."""

import argparse
import sys

import demo_sources as sources
import h5py
import numpy as np
from demo_sources import SourceError
from memsieve.hdf5_rows import read_texts
from memsieve.prepare import prompts


def chosen_rows(file, which, limit):
    """The first row of every caption among those asked for."""
    repeated = file["repeated"][:].astype(bool) if "repeated" in file else np.zeros(len(file["text"]), bool)
    first = {}
    for row, caption in enumerate(read_texts(file, "caption")):
        if which == "all" or repeated[row] == (which == "repeated"):
            first.setdefault(caption, row)
    if not first:
        raise SourceError(f"{file.filename}: holds no {which} picture")
    return list(first.values())[:limit or None]


def random_word(draw):
    return str(draw.randrange(prompts.NUMBER_LIMIT))


def make(arguments):
    with h5py.File(arguments.data, "r") as file:
        if "images" not in file or "mean" not in file["text"].attrs:
            raise SourceError(f"{arguments.data}: is no file of the demo's data set")
        rows = chosen_rows(file, arguments.which, arguments.limit)
        captions, every = [read_texts(file, "caption")[row] for row in rows], file["images"][:]
        images, attributes = every[rows], dict(file["images"].attrs)
        mean, std = file["text"].attrs["mean"], file["text"].attrs["std"]
        text, null_text = file["text"][:][rows], file["null_text"][:]
    variants = prompts.variants_of(captions, arguments.seed, arguments.random_tokens, arguments.random_variants,
                                   arguments.leave_out, random_word)
    if variants:
        states = ((sources.encode([v.caption for v in variants])[0] - mean) / std).astype(np.float16)
        text = np.concatenate([text, states])
        images = np.concatenate([images, images[[v.of for v in variants]]])
    captions += [variant.caption for variant in variants]
    words, ends = sources.words_of(captions)
    prompts.PromptsFile(captions=captions, text=text, null_text=null_text, tokens=words, ends=ends, encoder=sources.ENCODER,
                        variants=variants, images=images, attributes=attributes,
                        clip_text=sources.mean_states(text)).write(arguments.out)
    print(f"{arguments.out}: {len(rows)} prompts" + (f" and {len(variants)} variants" if variants else ""))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/demo/mix.h5", help="file of the data set (default: %(default)s)")
    parser.add_argument("--which", choices=("all", "repeated", "ordinary"), default="all", help="of mix.h5 and prompts.h5: the "
                        "repeated pictures or the others (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="take only the first so many; 0 = all")
    parser.add_argument("--random-tokens", type=int, default=0, help="also make variants with so many random tokens")
    parser.add_argument("--random-variants", type=int, default=1, help="how many of those for each (default: %(default)s)")
    parser.add_argument("--leave-out", action="store_true", help="also make a variant without each of the words")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens (default: %(default)s)")
    parser.add_argument("--out", required=True, help="the HDF5 file to write")
    try:
        make(parser.parse_args(argv))
    except (SourceError, OSError) as error:
        print(f"make_audit_prompts: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
