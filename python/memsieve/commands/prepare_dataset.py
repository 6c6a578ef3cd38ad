"""Makes a data set (HDF5, docs/data_format.md) for memsieve-train from a folder of pictures with captions and the VAE and
text encoders of a local diffusers pipeline: Stable Diffusion 1.x, 2.x or XL.

Exit code: 0 done; 2 wrong options; 3 data that cannot be used; 4 done, but pictures were skipped (skipped.jsonl lists them);
130 interrupted, to be continued with --resume."""

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from memsieve.prepare import encode, pictures
from memsieve.prepare.file import FLUSH_EVERY, RowFile, Workshop, finished
from memsieve.prepare.encode import TEXT_BATCH
from memsieve.prepare.pictures import OptionError, PrepareError, one_line
from memsieve.prepare.plan import PARTS, Plan, progress, scan

COMMON = ("resolution", "dtype", "variant")
OF_PICTURES = ("crop", "random_flip", "group_by", "hash_distance", "held_out", "validation", "seed")


def settings_of(arguments, what, words, names):
    """What decides the bytes of a file; kept in it, and compared before work goes on."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(json.dumps(word).encode())
    return {"version": 2, what: digest.hexdigest()[:16], "pipeline_files": encode.digest(arguments.pipeline),
            **{name: getattr(arguments, name) for name in names}}


# ---- second pass: encoding -------------------------------------------------------------------------------------------------


def time_ids(size, resolution, corner):
    return [size[1], size[0], *corner, resolution, resolution]


def fixed_of(encoder, captions, ids):
    """What is known of a file's rows before they are encoded."""
    states, pooled = encoder.encode([""], null=True)
    fixed = {"null_text": states[0], "caption": captions}
    if encoder.xl:
        fixed.update(null_pooled=pooled[0], time_ids=np.array(ids, np.float32))
    return fixed, states.shape[1:], pooled


def columns_of(encoder, arguments, text, pooled, flipped=False):
    side = arguments.resolution // encode.factor_of(encode.vae_config(arguments.pipeline))
    latent = (encoder.pipeline.vae.config.latent_channels, side, side)
    columns = {name: (latent, "f2") for name in ("latents", "latent_std")}
    if flipped:
        columns |= {f"{name}_flipped": (latent, "f2") for name in ("latents", "latent_std")}
    columns["text"] = (text, "f2")
    if encoder.xl:
        columns["pooled"] = (pooled.shape[1:], "f2")
    return columns


def attributes_of(encoder, settings):
    return {"/": {"format": "memsieve-dataset", "version": 1, "prepared_with": json.dumps(settings)}, "latents": encoder.scale}


def make_file(path, encoder, plan, rows, arguments, settings, flipped):
    names, sizes = [plan.sources[i].name for i in rows], [plan.looks[i]["size"] for i in rows]
    corners = [pictures.crop_of(s, arguments.resolution, arguments.crop, arguments.seed, n)[1] for s, n in zip(sizes, names)]
    ids = [time_ids(size, arguments.resolution, corner) for size, corner in zip(sizes, corners)]
    fixed, text, pooled = fixed_of(encoder, [plan.sources[i].caption for i in rows], ids)
    fixed.update(file_name=names, group_id=plan.groups[rows])
    columns = columns_of(encoder, arguments, text, pooled, flipped)
    columns["thumbnail"] = ((pictures.THUMBNAIL, pictures.THUMBNAIL, 3), "u1")
    RowFile.make(path, columns, len(rows), attributes_of(encoder, settings), fixed)


def require_finite(values, names, dtype):
    for name, array in values.items():
        if array.dtype.kind == "f":
            bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            if bad.any():
                raise PrepareError(f"{names[int(bad.argmax())]}: /{name} is NaN or Inf with --dtype {dtype}; use --dtype float32")


def encode_part(shop, encoder, plan, part, arguments, settings):
    """Fills PART.h5 from where it stands."""
    rows, path = plan.parts[part], shop.path(f"{part}.h5")
    if not len(rows) or (shop.out / path.name).exists():
        return
    done = shop.kept("done.json", {})
    first = done.get(part, 0) if path.exists() else 0
    flipped = arguments.random_flip and part != "validation"
    if not path.exists():
        make_file(path, encoder, plan, rows, arguments, settings, flipped)
    file = RowFile(path)

    def cut(i):
        name = plan.sources[i].name
        return pictures.cut(Path(arguments.images) / name, plan.looks[i]["size"], arguments.resolution, arguments.crop,
                            arguments.seed, name, flipped)

    size, batch = arguments.batch_size, []
    with ThreadPoolExecutor(arguments.workers) as executor, progress(f"encoding {part}", len(rows), first) as bar:
        for picture in pictures.in_order(executor, cut, rows[first:], 2 * size + arguments.workers):
            batch.append(picture)
            if len(batch) < size and first + len(batch) < len(rows):
                continue
            names = [plan.sources[i].name for i in rows[first:first + len(batch)]]
            values = encode_batch(encoder, batch, [plan.sources[i].caption for i in rows[first:first + len(batch)]])
            require_finite(values, names, arguments.dtype)
            file.write(first, values)
            first += len(batch)
            bar.update(len(batch))
            batch = []
            if first == len(rows) or first // size % FLUSH_EVERY == 0:
                file.flush()
                shop.keep("done.json", {**done, part: first})
    file.close()


def encode_batch(encoder, batch, captions):
    squares, thumbnails, mirrored = zip(*batch)
    states, pooled = encoder.encode(captions)
    values = {"text": states, "thumbnail": np.stack(thumbnails)}
    values["latents"], values["latent_std"] = encoder.latents(np.stack(squares))
    if mirrored[0] is not None:
        values["latents_flipped"], values["latent_std_flipped"] = encoder.latents(np.stack(mirrored))
    return values if pooled is None else {**values, "pooled": pooled}


# ---- prompts ---------------------------------------------------------------------------------------------------------------


def read_prompts(path):
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding=pictures.UTF8).split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None
    lines = [line for line in lines if line]
    if not lines:
        raise PrepareError(f"{path}: holds no prompt; write one on each line")
    if not all(map(pictures.storable, lines)):
        raise PrepareError(f"{path}: holds a NUL; it must be text")
    return lines


def make_prompts(arguments, load):
    """prompts.h5: a set without pictures; its latents stay zeros, which take no room on the disk."""
    prompts, out = read_prompts(arguments.prompts), Path(arguments.out)
    settings = settings_of(arguments, "prompts", prompts, COMMON)
    if finished(out, ["prompts.h5"], settings):
        print(f"{out / 'prompts.h5'}: up to date")
        return
    encoder, side = load(), arguments.resolution
    fixed, text, pooled = fixed_of(encoder, prompts, [time_ids((side, side), side, (0, 0)) for _ in prompts])
    out.mkdir(parents=True, exist_ok=True)
    path = out / ".prompts.h5"
    RowFile.make(path, columns_of(encoder, arguments, text, pooled), len(prompts), attributes_of(encoder, settings), fixed,
                 unwritten=("latents", "latent_std"))
    file = RowFile(path)
    for first in range(0, len(prompts), TEXT_BATCH):
        states, pooled = encoder.encode(prompts[first:first + TEXT_BATCH])
        file.write(first, {"text": states} if pooled is None else {"text": states, "pooled": pooled})
    file.close()
    os.replace(path, out / "prompts.h5")
    print(f"{out / 'prompts.h5'}: {len(prompts)} prompts")


# ---- all together ----------------------------------------------------------------------------------------------------------


def resolve(arguments):
    """Fills in what `auto` stands for. OptionError for options that contradict one another or the pipeline."""
    if not arguments.images and not arguments.prompts:
        raise OptionError("name a folder with --images, a file with --prompts, or both")
    encode.resolve(arguments)


def report_skipped(skipped, path):
    for entry in skipped[:10]:
        print(f"skipped {entry['file_name']}: {entry['error']}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"... {len(skipped)} skipped in all: {path}", file=sys.stderr)
    return 4 if skipped else 0


def make_set(arguments, load):
    """The files of pictures; returns the exit code."""
    sources, out = pictures.find(arguments.images, arguments.caption_column), Path(arguments.out)
    settings = settings_of(arguments, "sources", ([s.name, s.caption] for s in sources), COMMON + OF_PICTURES)
    names = [f"{part}.h5" for part in PARTS if part == "train" or getattr(arguments, part) > 0]
    if finished(out, names, settings):
        print(f"{out}: up to date")
        return 4 if (out / "skipped.jsonl").exists() else 0
    shop = Workshop(out, settings, arguments.resume)
    plan = Plan(sources, scan(shop, sources, Path(arguments.images), arguments.workers), arguments)
    print(plan.describe(), flush=True)
    encoder = load()
    too_long = encoder.too_long([source.caption for source in plan.sources])
    if too_long:
        print(f"{too_long} captions have more words than the text encoder takes; their ends are lost", flush=True)
    for part in PARTS:
        encode_part(shop, encoder, plan, part, arguments, settings)
    if plan.skipped:
        shop.path("skipped.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in plan.skipped))
    shop.finish(["skipped.jsonl", *names])
    print(f"{out}: {', '.join(reversed(names))}")
    return report_skipped(plan.skipped, out / "skipped.jsonl")


def make(arguments):
    resolve(arguments)
    load = cache(lambda: encode.Encoder(arguments.pipeline, arguments.device, arguments.dtype, arguments.variant))
    code = make_set(arguments, load) if arguments.images else 0
    if arguments.prompts:
        make_prompts(arguments, load)
    return code


def options():
    parser = argparse.ArgumentParser(prog="memsieve prepare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", help="folder of pictures with metadata.jsonl or metadata.csv (file_name, text), or with "
        ".txt files beside the pictures")
    add("--pipeline", required=True, help="folder of a diffusers pipeline: vae, text_encoder, tokenizer, ...")
    add("--out", required=True, help="folder for train.h5, held_out.h5, validation.h5 and prompts.h5")
    add("--resolution", type=int, default=512, help="pixels of a side (default: %(default)s; SDXL: 1024)")
    add("--crop", choices=("center", "random"), default="center", help="what is kept of pictures that are no square "
        "(default: %(default)s)")
    add("--random-flip", action="store_true", help="also encode every picture mirrored left to right, for data.random_flip: true; "
        "twice the work and, for the latents, twice the room")
    add("--held-out", type=int, default=64, help="pictures put aside that calibrate the sieve (default: %(default)s)")
    add("--validation", type=int, default=64, help="pictures put aside for the validation loss (default: %(default)s)")
    add("--group-by", choices=("image", "caption", "both"), default="image", help="what makes two rows copies: a perceptual "
        "hash of the picture, the same caption, or either (default: %(default)s)")
    add("--hash-distance", type=int, default=6, help="bits, of 64, in which hashes of copies may differ, 0 to 10 (default: "
        "%(default)s)")
    add("--prompts", help="text file with a prompt on each line: made to prompts.h5, for pictures drawn while training")
    add("--caption-column", default="text", help="field of the metadata that holds the caption (default: %(default)s)")
    add("--seed", type=int, default=0, help="decides random crops and what is put aside (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="pictures encoded together (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto = a GPU if there is one")
    add("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto", help="of the encoders; auto = float16 "
        "on a GPU, float32 on a CPU. A VAE with force_upcast stays float32")
    add("--variant", help="which weights of the pipeline to load, e.g. fp16")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read pictures (default: %(default)s)")
    add("--resume", action="store_true", help="continue an unfinished set")
    return parser


def main(argv=None):
    parser = options()
    arguments = parser.parse_args(argv)
    for name, least, most in (("resolution", 8, 1 << 14), ("held_out", 0, 1 << 40), ("validation", 0, 1 << 40),
                              ("hash_distance", 0, 10), ("batch_size", 1, 1 << 20), ("workers", 1, 1024)):
        if not least <= getattr(arguments, name) <= most:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to {most}, not {getattr(arguments, name)}")
    try:
        return make(arguments)
    except PrepareError as error:
        print(f"memsieve prepare: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"memsieve prepare: {one_line(error)}", file=sys.stderr)
        return 3
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print("memsieve prepare: the GPU's memory is full; continue with --resume and a smaller --batch-size", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("memsieve prepare: interrupted; continue with --resume", file=sys.stderr)
        return 130
