"""What the config.json of the UNets of Stable Diffusion's families hold: every key that their folders carry."""

_CROSS_DOWN, _DOWN, _CROSS_UP, _UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"

SD_1_4 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": [_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP],
}
SD_1_5 = SD_1_4 | {"_diffusers_version": "0.6.0"}
SD_2_0_BASE = SD_1_4 | {
    "_diffusers_version": "0.8.0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "use_linear_projection": True,
}
SD_2_1 = SD_2_0_BASE | {
    "_diffusers_version": "0.10.0.dev0", "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96,
    "upcast_attention": True, "class_embed_type": None, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_time_scale_shift": "default",
}
SDXL_BASE = SD_1_4 | {
    "_diffusers_version": "0.19.0.dev0", "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 2048, "cross_attention_norm": None, "down_block_types": [_DOWN, _CROSS_DOWN, _CROSS_DOWN],
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None, "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
    "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "sample_size": 128, "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [_CROSS_UP, _CROSS_UP, _UP], "upcast_attention": None, "use_linear_projection": True,
}
SDXL_REFINER = SDXL_BASE | {
    "attention_head_dim": [6, 12, 24, 24], "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": [_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN], "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4, "up_block_types": [_UP, _CROSS_UP, _CROSS_UP, _UP],
}

FAMILIES = {
    "sd_1_4": SD_1_4, "sd_1_5": SD_1_5, "sd_2_0_base": SD_2_0_BASE, "sd_2_1": SD_2_1, "sdxl_base": SDXL_BASE,
    "sdxl_refiner": SDXL_REFINER,
}
