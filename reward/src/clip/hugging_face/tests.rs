use super::*;

#[test]
fn what_is_written_reads_back() {
    for name in ["tiny", "toy", "vit-b-32", "vit-l-14", "vit-h-14"] {
        let config = ClipConfig::preset(name).unwrap();
        assert_eq!(ClipConfig::from_hugging_face("c", &config.to_hugging_face()).unwrap(), config, "{name}");
    }
    let resizes = [Resize::Shortest, Resize::Squash, Resize::Longest { fill: 127 }];
    for (resize, filter) in resizes.into_iter().flat_map(|resize| Filter::ALL.map(|filter| (resize, filter))) {
        let settings = Preprocessing { resize, filter, mean: [0.1, 0.2, 0.3], std: STD };
        assert_eq!(Preprocessing::from_hugging_face("p", &settings.to_hugging_face(64), 64).unwrap(), settings);
    }
    assert_eq!(Preprocessing::default().to_hugging_face(64)["size"], json!({"shortest_edge": 64}));
}

#[test]
fn a_config_of_another_model_or_with_wrong_values_is_refused_by_file_and_key() {
    for (config, says) in [
        (json!({"text_config": {"hidden_act": "relu"}}), "`hidden_act` is \"relu\""),
        (json!({"vision_config": {"hidden_act": 3}}), "c: vision_config: `hidden_act` is 3, want a text"),
        (json!({"vision_config": {"layer_norm_eps": "12"}}), "`layer_norm_eps` is \"12\", want a number"),
        (json!({"vision_config": {"layer_norm_eps": 0}}), "`layer_norm_eps` is 0"),
        (json!({"vision_config": {"num_hidden_layers": 1_000_000}}), "`num_hidden_layers` is 1000000"),
        (json!({"vision_config": {"image_size": 1_000_000_000}}), "`image_size` is 1000000000"),
        (
            json!({"vision_config": {"image_size": 64, "patch_size": 65}}),
            "`patch_size` is 65, want a whole number from 1 to 64",
        ),
        (json!({"vision_config": {"num_channels": 4}}), "`num_channels` is 4, want 3"),
        (json!({"vision_config": {"hidden_size": 0}}), "`hidden_size` is 0"),
        (json!({"vision_config": {"hidden_size": 65, "num_attention_heads": 2}}), "does not divide"),
        (json!({"vision_config": {"hidden_ac": "gelu"}}), "unknown key `hidden_ac`"),
        (json!({"text_config": {"vocab_size": 99_999_999}}), "`vocab_size` is 99999999"),
        (json!({"text_config": {"eos_token_id": 4_294_967_345_u64}}), "`eos_token_id` is 4294967345"),
        (
            json!({"text_config": {"eos_token_id": 49_408}}),
            "`eos_token_id` is 49408, want a whole number from 0 to 49407",
        ),
        (json!({"text_config": 3}), "c: `text_config` is 3, want an object"),
        (json!({"projection_dim": -1}), "`projection_dim` is -1"),
        (json!({"model_type": "siglip"}), "c: `model_type` is \"siglip\", want \"clip\""),
        (json!({"model_type": 3}), "`model_type` is 3, want a text"),
        (json!([1]), "c: want a JSON object, found [1]"),
    ] {
        let error = ClipConfig::from_hugging_face("c", &config).unwrap_err().to_string();
        assert!(error.contains(says) && error.starts_with("c: "), "{config}: {error}");
    }
    let long = json!({"vision_config": {"layer_norm_eps": 1e-6}});
    assert_eq!(ClipConfig::from_hugging_face("c", &long).unwrap().vision.layer_norm_eps, 1e-6);
}

/// The files of `openai/clip-vit-large-patch14`, of a folder of transformers 4.40, and of one of transformers 5.
#[test]
fn openais_is_read_in_every_spelling() {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    let square = json!({"height": 224, "width": 224});
    for settings in [
        json!({"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": mean, "image_std": std, "resample": 3,
            "size": 224}),
        json!({"_valid_processor_keys": ["images", "do_resize"], "crop_size": square, "do_center_crop": true,
            "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": mean,
            "image_processor_type": "CLIPImageProcessor", "image_std": std, "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224}}),
        json!({"crop_size": square, "data_format": "channels_first", "default_to_square": false, "device": null,
            "disable_grouping": null, "do_pad": null, "do_resize": true, "image_processor_type": "CLIPImageProcessorFast",
            "input_data_format": null, "pad_size": null, "size": {"longest_edge": null, "shortest_edge": 224}}),
        json!({}),
    ] {
        assert_eq!(
            Preprocessing::from_hugging_face("p", &settings, 224).unwrap(),
            Preprocessing::default(),
            "{settings}"
        );
    }
}

#[test]
fn other_values_are_honoured() {
    let read = |settings: Value| Preprocessing::from_hugging_face("p", &settings, 224).unwrap();
    assert_eq!(read(json!({"image_mean": 0.5, "image_std": [0.5, 0.25, 1]})).std, [0.5, 0.25, 1.0]);
    assert_eq!(read(json!({"do_normalize": false, "image_mean": 0.5})).mean, [0.0; 3]);
    for (settings, resize) in [
        (json!({"size": {"height": 224, "width": 224}, "do_center_crop": false}), Resize::Squash),
        (json!({"size": 224, "default_to_square": true}), Resize::Squash),
        (json!({"size": {"longest_edge": 224}, "fill_color": 9}), Resize::Longest { fill: 9 }),
    ] {
        assert_eq!(read(settings).resize, resize);
    }
    // Bytes as they are: (x − 127.5) / 51 is (x / 255 − 0.5) / 0.2.
    let bytes = read(json!({"do_rescale": false, "image_mean": 127.5, "image_std": 51}));
    assert_eq!((bytes.mean, bytes.std), ([0.5; 3], [0.2; 3]));
    // −1 to 1: (x / 127.5 − 1) / 1 is (x / 255 − 0.5) / 0.5.
    let signed = read(json!({"rescale_factor": 1.0 / 127.5, "image_mean": 1, "image_std": 1}));
    assert_eq!((signed.mean, signed.std), ([0.5; 3], [0.5; 3]));
}

#[test]
fn what_cannot_be_done_is_refused_by_file_and_key() {
    for (settings, says) in [
        (json!({"size": 256}), "`size` is 256, but the model's image_size is 224"),
        (json!({"size": 224, "crop_size": 225}), "`crop_size` is 225, but the model's image_size is 224"),
        (json!({"size": {"shortest_edge": 224}, "do_center_crop": false}), "`do_center_crop` is false"),
        (json!({"size": {"height": 224, "width": 200}}), "want a square"),
        (json!({"size": {"shortest_edge": 224, "longest_edge": 300}}), "`size` is {"),
        (json!({"size": "224"}), "`size` is \"224\""),
        (json!({"size": {"shortest_edge": "x"}}), "p: size: `shortest_edge` is \"x\""),
        (json!({"crop_size": [224, 224]}), "`crop_size` is [224,224], want an object"),
        (json!({"do_resize": false}), "`do_resize` is false"),
        (json!({"do_resize": 1}), "`do_resize` is 1, want true or false"),
        (json!({"do_pad": true}), "`do_pad` is true"),
        (json!({"resample": 6}), "`resample` is 6, want a whole number from 0 to 5"),
        (json!({"resample": "bicubic"}), "`resample` is \"bicubic\""),
        (json!({"image_std": 0}), "`image_std` is 0, want numbers above 0"),
        (json!({"image_std": [0.5, 0.5, 1e-60]}), "want numbers above 0"),
        (json!({"image_mean": [0.5, 0.5]}), "`image_mean` is [0.5,0.5], want a number, or three"),
        (json!({"image_mean": 1e300}), "`image_mean` is 1e+300"),
        (json!({"image_meen": 0.5}), "unknown key `image_meen`"),
        (json!({"rescale_factor": 0}), "`rescale_factor` is 0"),
        (json!({"image_processor_type": "SiglipImageProcessor"}), "`image_processor_type` is \"SiglipImageProcessor\""),
    ] {
        let error = Preprocessing::from_hugging_face("p", &settings, 224).unwrap_err().to_string();
        assert!(error.starts_with("p: ") && error.contains(says), "{settings}: {error}");
    }
    let error = Preprocessing::from_hugging_face("p", &json!({}), 64).unwrap_err().to_string();
    assert_eq!(error, "p: `size` is not given, which means 224, but the model's image_size is 64");
}
