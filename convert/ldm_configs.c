/* Configs of the models that a checkpoint is recognised as: what their folders on the hub have,
 * less what says nothing of the network. Equal ones stand once. A tokenizer's vocabulary is not
 * here. */
#include "ldm.h"

#include <stddef.h>

static const char sd15_model_index[] =
    "{\"_class_name\":\"StableDiffusionPipeline\",\"_diffusers_version\":\"0.6.0\","
    "\"scheduler\":[\"diffusers\",\"PNDMScheduler\"],\"text_encoder\":[\"transformers\","
    "\"CLIPTextModel\"],\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],"
    "\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],\"vae\":[\"diffusers\",\"AutoencoderKL\"]}";

static const char sd15_unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.6.0\","
    "\"act_fn\":\"silu\",\"attention_head_dim\":8,\"block_out_channels\":[320,640,1280,1280],"
    "\"center_input_sample\":false,\"cross_attention_dim\":768,"
    "\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"downsample_padding\":1,\"flip_sin_to_cos\":true,"
    "\"freq_shift\":0,\"in_channels\":4,\"layers_per_block\":2,\"mid_block_scale_factor\":1,"
    "\"norm_eps\":1e-05,\"norm_num_groups\":32,\"out_channels\":4,\"sample_size\":64,"
    "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\","
    "\"CrossAttnUpBlock2D\"]}";

static const char sd15_vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"_diffusers_version\":\"0.6.0\",\"act_fn\":\"silu\","
    "\"block_out_channels\":[128,256,512,512],\"down_block_types\":[\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],\"in_channels\":3,"
    "\"latent_channels\":4,\"layers_per_block\":2,\"norm_num_groups\":32,\"out_channels\":3,"
    "\"sample_size\":512,\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";

static const char sd15_text_encoder[] =
    "{\"bos_token_id\":0,\"eos_token_id\":2,\"hidden_act\":\"quick_gelu\",\"hidden_size\":768,"
    "\"intermediate_size\":3072,\"layer_norm_eps\":1e-05,\"max_position_embeddings\":77,"
    "\"model_type\":\"clip_text_model\",\"num_attention_heads\":12,\"num_hidden_layers\":12,"
    "\"pad_token_id\":1,\"projection_dim\":768,\"vocab_size\":49408}";

static const char sd15_scheduler[] =
    "{\"_class_name\":\"PNDMScheduler\",\"_diffusers_version\":\"0.6.0\",\"beta_end\":0.012,"
    "\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,\"num_train_timesteps\":1000,"
    "\"set_alpha_to_one\":false,\"skip_prk_steps\":true,\"steps_offset\":1,\"trained_betas\":null,"
    "\"clip_sample\":false}";

static const char sd15_tokenizer[] =
    "{\"add_prefix_space\":false,\"bos_token\":{\"__type\":\"AddedToken\","
    "\"content\":\"<|startoftext|>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
    "\"single_word\":false},\"do_lower_case\":true,\"eos_token\":{\"__type\":\"AddedToken\","
    "\"content\":\"<|endoftext|>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
    "\"single_word\":false},\"errors\":\"replace\",\"model_max_length\":77,"
    "\"pad_token\":\"<|endoftext|>\",\"tokenizer_class\":\"CLIPTokenizer\","
    "\"unk_token\":{\"__type\":\"AddedToken\",\"content\":\"<|endoftext|>\",\"lstrip\":false,"
    "\"normalized\":true,\"rstrip\":false,\"single_word\":false}}";

static const char sd15_tokenizer_special[] =
    "{\"bos_token\":{\"content\":\"<|startoftext|>\",\"lstrip\":false,\"normalized\":true,"
    "\"rstrip\":false,\"single_word\":false},\"eos_token\":{\"content\":\"<|endoftext|>\","
    "\"lstrip\":false,\"normalized\":true,\"rstrip\":false,\"single_word\":false},"
    "\"pad_token\":\"<|endoftext|>\",\"unk_token\":{\"content\":\"<|endoftext|>\","
    "\"lstrip\":false,\"normalized\":true,\"rstrip\":false,\"single_word\":false}}";

static const char sdxl_model_index[] =
    "{\"_class_name\":\"StableDiffusionXLPipeline\",\"_diffusers_version\":\"0.19.0.dev0\","
    "\"force_zeros_for_empty_prompt\":true,\"scheduler\":[\"diffusers\","
    "\"EulerDiscreteScheduler\"],\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],"
    "\"text_encoder_2\":[\"transformers\",\"CLIPTextModelWithProjection\"],"
    "\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],\"tokenizer_2\":[\"transformers\","
    "\"CLIPTokenizer\"],\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],\"vae\":[\"diffusers\","
    "\"AutoencoderKL\"]}";

static const char sdxl_unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.19.0.dev0\","
    "\"act_fn\":\"silu\",\"addition_embed_type\":\"text_time\","
    "\"addition_embed_type_num_heads\":64,\"addition_time_embed_dim\":256,"
    "\"attention_head_dim\":[5,10,20],\"block_out_channels\":[320,640,1280],"
    "\"center_input_sample\":false,\"class_embed_type\":null,\"class_embeddings_concat\":false,"
    "\"conv_in_kernel\":3,\"conv_out_kernel\":3,\"cross_attention_dim\":2048,"
    "\"cross_attention_norm\":null,\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"CrossAttnDownBlock2D\"],\"downsample_padding\":1,\"dual_cross_attention\":false,"
    "\"encoder_hid_dim\":null,\"encoder_hid_dim_type\":null,\"flip_sin_to_cos\":true,"
    "\"freq_shift\":0,\"in_channels\":4,\"layers_per_block\":2,"
    "\"mid_block_only_cross_attention\":null,\"mid_block_scale_factor\":1,"
    "\"mid_block_type\":\"UNetMidBlock2DCrossAttn\",\"norm_eps\":1e-05,\"norm_num_groups\":32,"
    "\"num_attention_heads\":null,\"num_class_embeds\":null,\"only_cross_attention\":false,"
    "\"out_channels\":4,\"projection_class_embeddings_input_dim\":2816,"
    "\"resnet_out_scale_factor\":1.0,\"resnet_skip_time_act\":false,"
    "\"resnet_time_scale_shift\":\"default\",\"sample_size\":128,\"time_cond_proj_dim\":null,"
    "\"time_embedding_act_fn\":null,\"time_embedding_dim\":null,"
    "\"time_embedding_type\":\"positional\",\"timestep_post_act\":null,"
    "\"transformer_layers_per_block\":[1,2,10],\"up_block_types\":[\"CrossAttnUpBlock2D\","
    "\"CrossAttnUpBlock2D\",\"UpBlock2D\"],\"upcast_attention\":null,"
    "\"use_linear_projection\":true}";

static const char sdxl_vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"_diffusers_version\":\"0.20.0.dev0\","
    "\"act_fn\":\"silu\",\"block_out_channels\":[128,256,512,512],"
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\"],\"force_upcast\":true,\"in_channels\":3,\"latent_channels\":4,"
    "\"layers_per_block\":2,\"norm_num_groups\":32,\"out_channels\":3,\"sample_size\":1024,"
    "\"scaling_factor\":0.13025,\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";

static const char sdxl_text_encoder_2[] =
    "{\"bos_token_id\":0,\"eos_token_id\":2,\"hidden_act\":\"gelu\",\"hidden_size\":1280,"
    "\"intermediate_size\":5120,\"layer_norm_eps\":1e-05,\"max_position_embeddings\":77,"
    "\"model_type\":\"clip_text_model\",\"num_attention_heads\":20,\"num_hidden_layers\":32,"
    "\"pad_token_id\":1,\"projection_dim\":1280,\"vocab_size\":49408}";

static const char sdxl_scheduler[] =
    "{\"_class_name\":\"EulerDiscreteScheduler\",\"_diffusers_version\":\"0.19.0.dev0\","
    "\"beta_end\":0.012,\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,"
    "\"clip_sample\":false,\"interpolation_type\":\"linear\",\"num_train_timesteps\":1000,"
    "\"prediction_type\":\"epsilon\",\"sample_max_value\":1.0,\"set_alpha_to_one\":false,"
    "\"skip_prk_steps\":true,\"steps_offset\":1,\"timestep_spacing\":\"leading\","
    "\"trained_betas\":null,\"use_karras_sigmas\":false}";

static const char sdxl_tokenizer_2[] =
    "{\"add_prefix_space\":false,\"bos_token\":{\"__type\":\"AddedToken\","
    "\"content\":\"<|startoftext|>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
    "\"single_word\":false},\"do_lower_case\":true,\"eos_token\":{\"__type\":\"AddedToken\","
    "\"content\":\"<|endoftext|>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
    "\"single_word\":false},\"errors\":\"replace\",\"model_max_length\":77,\"pad_token\":\"!\","
    "\"tokenizer_class\":\"CLIPTokenizer\",\"unk_token\":{\"__type\":\"AddedToken\","
    "\"content\":\"<|endoftext|>\",\"lstrip\":false,\"normalized\":true,\"rstrip\":false,"
    "\"single_word\":false}}";

static const char sdxl_tokenizer_2_special[] =
    "{\"bos_token\":{\"content\":\"<|startoftext|>\",\"lstrip\":false,\"normalized\":true,"
    "\"rstrip\":false,\"single_word\":false},\"eos_token\":{\"content\":\"<|endoftext|>\","
    "\"lstrip\":false,\"normalized\":true,\"rstrip\":false,\"single_word\":false},"
    "\"pad_token\":\"!\",\"unk_token\":{\"content\":\"<|endoftext|>\",\"lstrip\":false,"
    "\"normalized\":true,\"rstrip\":false,\"single_word\":false}}";

static const char ssd1b_model_index[] =
    "{\"_class_name\":\"StableDiffusionXLPipeline\",\"_diffusers_version\":\"0.19.0\","
    "\"force_zeros_for_empty_prompt\":true,\"scheduler\":[\"diffusers\","
    "\"EulerDiscreteScheduler\"],\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],"
    "\"text_encoder_2\":[\"transformers\",\"CLIPTextModelWithProjection\"],"
    "\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],\"tokenizer_2\":[\"transformers\","
    "\"CLIPTokenizer\"],\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],\"vae\":[\"diffusers\","
    "\"AutoencoderKL\"]}";

static const char ssd1b_unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.19.0.dev0\","
    "\"act_fn\":\"silu\",\"addition_embed_type\":\"text_time\","
    "\"addition_embed_type_num_heads\":64,\"addition_time_embed_dim\":256,"
    "\"attention_head_dim\":[5,10,20],\"block_out_channels\":[320,640,1280],"
    "\"center_input_sample\":false,\"class_embed_type\":null,\"class_embeddings_concat\":false,"
    "\"conv_in_kernel\":3,\"conv_out_kernel\":3,\"cross_attention_dim\":2048,"
    "\"cross_attention_norm\":null,\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\","
    "\"CrossAttnDownBlock2D\"],\"downsample_padding\":1,\"dual_cross_attention\":false,"
    "\"encoder_hid_dim\":null,\"encoder_hid_dim_type\":null,\"flip_sin_to_cos\":true,"
    "\"freq_shift\":0,\"in_channels\":4,\"layers_per_block\":2,"
    "\"mid_block_only_cross_attention\":null,\"mid_block_scale_factor\":1,"
    "\"mid_block_type\":\"UNetMidBlock2D\",\"norm_eps\":1e-05,\"norm_num_groups\":32,"
    "\"num_attention_heads\":null,\"num_class_embeds\":null,\"only_cross_attention\":false,"
    "\"out_channels\":4,\"projection_class_embeddings_input_dim\":2816,"
    "\"resnet_out_scale_factor\":1.0,\"resnet_skip_time_act\":false,"
    "\"resnet_time_scale_shift\":\"default\",\"sample_size\":128,\"time_cond_proj_dim\":null,"
    "\"time_embedding_act_fn\":null,\"time_embedding_dim\":null,"
    "\"time_embedding_type\":\"positional\",\"timestep_post_act\":null,"
    "\"transformer_layers_per_block\":[1,[2,2],[4,4]],"
    "\"reverse_transformer_layers_per_block\":[[4,4,10],[2,1,1],1],"
    "\"up_block_types\":[\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"UpBlock2D\"],"
    "\"upcast_attention\":null,\"use_linear_projection\":true}";

static const char ssd1b_vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"_diffusers_version\":\"0.19.0.dev0\","
    "\"act_fn\":\"silu\",\"block_out_channels\":[128,256,512,512],"
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\"],\"force_upcast\":true,\"in_channels\":3,\"latent_channels\":4,"
    "\"layers_per_block\":2,\"norm_num_groups\":32,\"out_channels\":3,\"sample_size\":1024,"
    "\"scaling_factor\":0.13025,\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";

static const char pixart_model_index[] =
    "{\"_class_name\":\"PixArtAlphaPipeline\",\"_diffusers_version\":\"0.22.0.dev0\","
    "\"scheduler\":[\"diffusers\",\"DPMSolverMultistepScheduler\"],"
    "\"text_encoder\":[\"transformers\",\"T5EncoderModel\"],\"tokenizer\":[\"transformers\","
    "\"T5Tokenizer\"],\"transformer\":[\"diffusers\",\"Transformer2DModel\"],"
    "\"vae\":[\"diffusers\",\"AutoencoderKL\"]}";

static const char pixart_transformer[] =
    "{\"_class_name\":\"Transformer2DModel\",\"_diffusers_version\":\"0.22.0.dev0\","
    "\"activation_fn\":\"gelu-approximate\",\"attention_bias\":true,\"attention_head_dim\":72,"
    "\"attention_type\":\"default\",\"caption_channels\":4096,\"cross_attention_dim\":1152,"
    "\"double_self_attention\":false,\"in_channels\":4,\"norm_elementwise_affine\":false,"
    "\"norm_eps\":1e-06,\"norm_num_groups\":32,\"norm_type\":\"ada_norm_single\","
    "\"num_attention_heads\":16,\"num_embeds_ada_norm\":1000,\"num_layers\":28,"
    "\"num_vector_embeds\":null,\"only_cross_attention\":false,\"out_channels\":8,"
    "\"patch_size\":2,\"sample_size\":128,\"upcast_attention\":false,"
    "\"use_linear_projection\":false}";

static const char pixart_vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"_diffusers_version\":\"0.22.0.dev0\","
    "\"act_fn\":\"silu\",\"block_out_channels\":[128,256,512,512],"
    "\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\","
    "\"DownEncoderBlock2D\"],\"force_upcast\":true,\"in_channels\":3,\"latent_channels\":4,"
    "\"layers_per_block\":2,\"norm_num_groups\":32,\"out_channels\":3,\"sample_size\":256,"
    "\"scaling_factor\":0.18215,\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\","
    "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";

static const char pixart_scheduler[] =
    "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"_diffusers_version\":\"0.22.0.dev0\","
    "\"algorithm_type\":\"dpmsolver++\",\"beta_end\":0.02,\"beta_schedule\":\"linear\","
    "\"beta_start\":0.0001,\"dynamic_thresholding_ratio\":0.995,\"euler_at_final\":false,"
    "\"lambda_min_clipped\":\"-Infinity\",\"lower_order_final\":true,\"num_train_timesteps\":1000,"
    "\"prediction_type\":\"epsilon\",\"sample_max_value\":1.0,\"solver_order\":2,"
    "\"solver_type\":\"midpoint\",\"steps_offset\":0,\"thresholding\":false,"
    "\"timestep_spacing\":\"linspace\",\"trained_betas\":null,\"use_karras_sigmas\":false,"
    "\"use_lu_lambdas\":false,\"variance_type\":null}";

const char *const dpk_ldm_files_sd15[][2] = {
    {"model_index.json", sd15_model_index},
    {"unet/config.json", sd15_unet},
    {"vae/config.json", sd15_vae},
    {"text_encoder/config.json", sd15_text_encoder},
    {"scheduler/scheduler_config.json", sd15_scheduler},
    {"tokenizer/tokenizer_config.json", sd15_tokenizer},
    {"tokenizer/special_tokens_map.json", sd15_tokenizer_special},
    {NULL, NULL},
};

const char *const dpk_ldm_files_sdxl[][2] = {
    {"model_index.json", sdxl_model_index},
    {"unet/config.json", sdxl_unet},
    {"vae/config.json", sdxl_vae},
    {"text_encoder/config.json", sd15_text_encoder},
    {"text_encoder_2/config.json", sdxl_text_encoder_2},
    {"scheduler/scheduler_config.json", sdxl_scheduler},
    {"tokenizer/tokenizer_config.json", sd15_tokenizer},
    {"tokenizer/special_tokens_map.json", sd15_tokenizer_special},
    {"tokenizer_2/tokenizer_config.json", sdxl_tokenizer_2},
    {"tokenizer_2/special_tokens_map.json", sdxl_tokenizer_2_special},
    {NULL, NULL},
};

const char *const dpk_ldm_files_ssd1b[][2] = {
    {"model_index.json", ssd1b_model_index},
    {"unet/config.json", ssd1b_unet},
    {"vae/config.json", ssd1b_vae},
    {"text_encoder/config.json", sd15_text_encoder},
    {"text_encoder_2/config.json", sdxl_text_encoder_2},
    {"scheduler/scheduler_config.json", sdxl_scheduler},
    {"tokenizer/tokenizer_config.json", sd15_tokenizer},
    {"tokenizer/special_tokens_map.json", sd15_tokenizer_special},
    {"tokenizer_2/tokenizer_config.json", sdxl_tokenizer_2},
    {"tokenizer_2/special_tokens_map.json", sdxl_tokenizer_2_special},
    {NULL, NULL},
};

const char *const dpk_ldm_files_pixart[][2] = {
    {"model_index.json", pixart_model_index},
    {"transformer/config.json", pixart_transformer},
    {"vae/config.json", pixart_vae},
    {"scheduler/scheduler_config.json", pixart_scheduler},
    {NULL, NULL},
};
