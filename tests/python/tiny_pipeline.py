"""Random Stable Diffusion pipelines of a few kilobytes, made by diffusers, and folders of pictures for them."""
import json

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 12


def tokenizer(folder):
    """Letters, a few merges and the two special tokens; saved and read back, as a pipeline's would be."""
    letters = [chr(c) for c in range(33, 127)]
    words = letters + [letter + "</w>" for letter in letters] + ["ca", "cat</w>", "do", "dog</w>"]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")],
                  model_max_length=TOKENS).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokens, width):
    return CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
                          vocab_size=len(tokens), max_position_embeddings=TOKENS, projection_dim=10,
                          bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.eos_token_id)


def vae(**more):
    """Side / 2; deviations that matter."""
    made = AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
                         up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, sample_size=16, **more)
    with torch.no_grad():
        made.quant_conv.weight.mul_(3)
    return made.eval()


def unet(cross_attention_dim, **more):
    return UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, attention_head_dim=2,
                                cross_attention_dim=cross_attention_dim, **more).eval()


SCHEDULER = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
                 steps_offset=1)


def stable_diffusion(folder, prediction_type="epsilon", variant=None):
    """A pipeline like Stable Diffusion 1.x, or with v_prediction like 2.x."""
    torch.manual_seed(0)
    tokens = tokenizer(folder / "made_tokenizer")
    made = StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215), text_encoder=CLIPTextModel(text_config(tokens, 8)).eval(), tokenizer=tokens,
        unet=unet(8, use_linear_projection=prediction_type != "epsilon"),
        scheduler=DDIMScheduler(prediction_type=prediction_type, **SCHEDULER), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    made.save_pretrained(folder, variant=variant)
    return made


def stable_diffusion_xl(folder, force_zeros=True, force_upcast=True):
    torch.manual_seed(1)
    tokens = tokenizer(folder / "made_tokenizer")
    made = StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=force_upcast), tokenizer=tokens, tokenizer_2=tokens,
        text_encoder=CLIPTextModel(text_config(tokens, 8)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokens, 12)).eval(),
        unet=unet(20, addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=2,
                  projection_class_embeddings_input_dim=10 + 6 * 4, use_linear_projection=True),
        scheduler=DDIMScheduler(**SCHEDULER), force_zeros_for_empty_prompt=force_zeros)
    made.save_pretrained(folder)
    return made


def picture(number, size=(24, 16)):
    """Coloured patches that no other number has, smooth enough for a perceptual hash; (width, height)."""
    patches = np.random.default_rng(number).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def pictures(folder, count, captions=None):
    """00.png ... of different shapes with metadata.jsonl; picture i has the caption `a cat number i`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        picture(i, [(24, 16), (16, 16), (20, 40)][i % 3]).save(folder / f"{i:02}.png")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": captions[i] if captions else f"a cat number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
