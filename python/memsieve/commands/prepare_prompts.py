"""Makes prompts (HDF5, docs/audit.md) for memsieve-audit from a file of prompts and the text encoders of a local diffusers
pipeline: Stable Diffusion 1.x, 2.x or XL. The file is text with a prompt on each line; JSON lines; CSV, as MemBench's; or
COCO's captions, of which the first of each picture is taken.

Exit code: 0 done; 2 wrong options; 3 data that cannot be used."""

import argparse
import sys

import numpy as np

from memsieve.prepare import clip_text, encode, prompts
from memsieve.prepare.encode import TEXT_BATCH
from memsieve.prepare.pictures import PrepareError, one_line


def words_of(tokenizer, captions):
    """(words of all tokens, place of the first end token) of each caption. A word's last piece ends in a space."""
    special, words, ends = set(tokenizer.all_special_ids), [], []

    def word(number, piece):
        if number in special:
            return piece
        text = tokenizer.convert_tokens_to_string([piece]).replace("</w>", "").strip()
        return text + (" " if piece.endswith("</w>") else "")

    for row in tokenizer(captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length).input_ids:
        words.append(list(map(word, row, tokenizer.convert_ids_to_tokens(row))))
        ends.append(row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row))
    return words, ends


def encoded(encoder, captions):
    states, pooled = [], []
    for first in range(0, len(captions), TEXT_BATCH):
        part, of_part = encoder.encode(captions[first:first + TEXT_BATCH])
        states.append(part)
        pooled.append(of_part)
    return np.concatenate(states), None if pooled[0] is None else np.concatenate(pooled)


def random_token(tokenizer):
    limit = min(prompts.TOKEN_LIMIT, len(tokenizer))
    return lambda draw: tokenizer.decode([draw.randrange(limit)]).replace("\0", " ").strip() or "0"


def make(arguments):
    side = encode.resolve(arguments)
    found = prompts.read(arguments.prompts, arguments.format, arguments.column)[:arguments.limit or None]
    encoder = encode.Encoder(arguments.pipeline, arguments.device, arguments.dtype, arguments.variant)
    tokenizer = encoder.pipeline.tokenizer or encoder.pipeline.tokenizer_2
    variants = prompts.variants_of(found, arguments.seed, arguments.random_tokens, arguments.random_variants, arguments.leave_out,
                                   random_token(tokenizer))
    if arguments.rephrased:
        variants += prompts.rephrased_of(found, arguments.rephrased)
    captions = found + [variant.caption for variant in variants]
    words, ends = words_of(tokenizer, captions)
    states, pooled = encoded(encoder, captions)
    null_text, null_pooled = encoder.encode([""], null=True)
    more = {}
    if encoder.xl:
        resolution = arguments.resolution
        more = {"pooled": pooled, "null_pooled": null_pooled[0],
                "time_ids": np.array([[resolution, resolution, 0, 0, resolution, resolution]] * len(captions), np.float32)}
    if not np.isfinite(states).all():
        raise PrepareError(f"the states are NaN or Inf with --dtype {arguments.dtype}; use --dtype float32")
    if arguments.clip:
        more["clip_text"] = clip_text.features(arguments.clip, captions, encoder.device)
    prompts.PromptsFile(
        captions=captions, text=states, null_text=null_text[0], tokens=words, ends=ends, variants=variants,
        encoder=encode.digest(arguments.pipeline), latents=(encoder.pipeline.vae.config.latent_channels, side, side),
        attributes=encoder.scale, **more).write(arguments.out)
    print(f"{arguments.out}: {len(found)} prompts" + (f" and {len(variants)} variants" if variants else ""))
    too_long = encoder.too_long(found)
    if too_long:
        print(f"{too_long} prompts have more words than the text encoder takes; their ends are lost")


def options():
    parser = argparse.ArgumentParser(prog="memsieve prompts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompts", required=True, help="the file of prompts: .txt, .jsonl, .csv or COCO's .json")
    add("--format", choices=("auto", *prompts.READERS), default="auto", help="of that file; auto = by its name")
    add("--column", help="field that holds the prompt (default: the first there of " + ", ".join(prompts.COLUMNS) + ")")
    add("--limit", type=int, default=0, help="take only the first so many; 0 = all")
    add("--pipeline", required=True, help="folder of a diffusers pipeline: text_encoder, tokenizer, vae, ...")
    add("--out", required=True, help="the HDF5 file to write")
    add("--resolution", type=int, default=512, help="pixels of a side (default: %(default)s; SDXL: 1024)")
    add("--random-tokens", type=int, default=0, help="also make variants with so many random tokens inserted, for `mitigate` "
        "(published: 4, or 1)")
    add("--random-variants", type=int, default=1, help="how many of those for each prompt (default: %(default)s)")
    add("--leave-out", action="store_true", help="also make, of each prompt, a variant without each of its words, for "
        "`explain --without`")
    add("--clip", metavar="FOLDER", help="also store what the text tower of this CLIP model answers (a folder in transformers' "
        "format), for `benchmark --clip`")
    add("--rephrased", metavar="FILE", help="JSON lines with other wordings of prompts, {\"prompt\": text, \"rephrased\": [texts]}, for "
        "`mitigate` (published: up to 25 of each, by a language model)")
    add("--seed", type=int, default=0, help="of the random tokens (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto = a GPU if there is one")
    add("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto", help="of the encoders; auto = float16 on a "
        "GPU, float32 on a CPU")
    add("--variant", help="which weights of the pipeline to load, e.g. fp16")
    return parser


def main(argv=None):
    parser = options()
    arguments = parser.parse_args(argv)
    for name, least, most in (("resolution", 8, 1 << 14), ("limit", 0, 1 << 40), ("random_tokens", 0, 64),
                              ("random_variants", 1, 64)):
        if not least <= getattr(arguments, name) <= most:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to {most}, not {getattr(arguments, name)}")
    try:
        make(arguments)
    except PrepareError as error:
        print(f"memsieve prompts: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"memsieve prompts: {one_line(error)}", file=sys.stderr)
        return 3
    return 0
