"""Text features of a CLIP model: what `memsieve-audit benchmark` compares drawings with."""

import os

import numpy as np

from memsieve.prepare.encode import TEXT_BATCH
from memsieve.prepare.pictures import PrepareError, one_line


def features(folder, captions, device):
    """float32 [N, D], each of length 1, by the text tower and projection of a CLIPModel in transformers' format."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        # The text tower alone: its class takes the weights that it knows from the whole model's file.
        tower, loaded = transformers.CLIPTextModelWithProjection.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a missing or torn file comes as anything
        raise PrepareError(f"{folder}: cannot be loaded as a CLIP model ({type(error).__name__}: {one_line(error)}); --clip names "
                           "the folder of a CLIPModel with its tokenizer") from None
    if loaded["missing_keys"]:
        raise PrepareError(f"{folder}: has no text tower with its projection ({min(loaded['missing_keys'])} is missing)")
    tower, found = tower.to(device).eval(), []
    longest = tower.config.max_position_embeddings
    with torch.inference_mode():
        for first in range(0, len(captions), TEXT_BATCH):
            tokens = tokenizer(captions[first:first + TEXT_BATCH], padding="max_length", truncation=True, max_length=longest,
                               return_tensors="pt")
            found.append(tower(input_ids=tokens.input_ids.to(device),
                               attention_mask=tokens.attention_mask.to(device)).text_embeds.float().cpu().numpy())
    states = np.concatenate(found)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    if not np.isfinite(states).all():
        raise PrepareError(f"{folder}: answers NaN or Inf; is it a trained CLIP model?")
    return states
