//! Both towers on candle, ours and candle-transformers' own.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::{
    ClipConfig, ClipModel, div_l2_norm,
    text_model::{Activation, ClipTextConfig},
    vision_model::ClipVisionConfig,
};
use reward::engine::candle::Candle;

use crate::{
    fixture::{assert_close, golden},
    models::{Model, models},
};

impl Model {
    fn pixels(&self) -> Tensor {
        let shape = self.expected.shape("pixel_values");
        Tensor::from_vec(self.expected.floats("pixel_values"), shape, &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn assert_embeddings(&self, what: &str, embeddings: &Tensor) {
        let unit = div_l2_norm(embeddings).unwrap();
        for (what, tensor) in [(what.to_owned(), embeddings), (format!("{what}_unit"), &unit)] {
            let got: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            assert_close(&format!("{} {what}", self.name), &got, &self.expected.floats(&what), 1e-5);
        }
    }
}

#[test]
fn embeddings_are_those_of_the_python_libraries() {
    for model in models() {
        let portable = Candle::load(&model.checkpoint).unwrap();
        model.assert_embeddings("image_embeds", &portable.image_embeddings(&model.pixels()).unwrap());
        for prompts in [model.prompts(), model.padded_prompts()] {
            let texts = portable.text_embeddings(&prompts.iter().collect::<Vec<_>>()).unwrap();
            model.assert_embeddings("text_embeds", &texts);
        }
    }
}

/// candle-transformers knows QuickGELU alone and pools at the highest id: of the fixtures, `hf_old_eos`.
#[test]
fn candle_transformers_agrees() {
    let model = models().find(|model| model.name == "hf_old_eos").unwrap();
    let config = &model.checkpoint.config;
    let theirs = ClipConfig {
        text_config: ClipTextConfig {
            vocab_size: config.vocab_size,
            embed_dim: config.text.width,
            activation: Activation::QuickGelu,
            intermediate_size: config.text.mlp_width,
            max_position_embeddings: config.context_length,
            pad_with: None,
            num_hidden_layers: config.text.layers,
            num_attention_heads: config.text.heads,
            projection_dim: config.embed_dim,
        },
        vision_config: ClipVisionConfig {
            embed_dim: config.vision.width,
            activation: Activation::QuickGelu,
            intermediate_size: config.vision.mlp_width,
            num_hidden_layers: config.vision.layers,
            num_attention_heads: config.vision.heads,
            projection_dim: config.embed_dim,
            num_channels: 3,
            image_size: config.image_size,
            patch_size: config.patch_size,
        },
        logit_scale_init_value: 0.0,
        image_size: config.image_size,
    };
    let weights = fs_err::read(golden("clip/hf_old_eos/model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let clip = ClipModel::new(weights, &theirs).unwrap();
    model.assert_embeddings("image_embeds", &clip.get_image_features(&model.pixels()).unwrap());
    let ids = Tensor::from_vec(model.expected.integers("input_ids"), model.expected.shape("input_ids"), &Device::Cpu);
    let ids = ids.unwrap().to_dtype(DType::U32).unwrap();
    model.assert_embeddings("text_embeds", &clip.get_text_features(&ids).unwrap());
}
