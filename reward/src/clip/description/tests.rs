use super::*;
use crate::clip::{
    config::Activation,
    filter::Filter,
    preprocessing::{Resize, STD},
};

/// A folder with these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs_err::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn tiny(activation: Activation) -> Value {
    let mut config = ClipConfig::preset("tiny").unwrap();
    (config.vision.activation, config.text.activation) = (activation, activation);
    config.to_hugging_face()
}

fn open_clip(preprocess: Value) -> Value {
    json!({
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 16},
            "text_cfg": {"width": 64, "heads": 1, "layers": 3},
        },
        "preprocess_cfg": preprocess,
    })
}

fn pictures(filter: Filter) -> Value {
    Preprocessing { filter, ..Preprocessing::default() }.to_hugging_face(64)
}

#[test]
fn the_nested_settings_of_a_processor_count_alone() {
    let config = ("config.json", tiny(Activation::QuickGelu));
    let of = |files: &[(&str, Value)]| Description::of_folder(folder(files).path(), None).unwrap().config.preprocessing;
    assert_eq!(of(std::slice::from_ref(&config)), Preprocessing::default());
    let plain = ("preprocessor_config.json", pictures(Filter::Bilinear));
    assert_eq!(of(&[config.clone(), plain.clone()]).filter, Filter::Bilinear);
    let nested = ("processor_config.json", json!({"image_processor": pictures(Filter::Box)}));
    assert_eq!(of(&[config.clone(), plain.clone(), nested]).filter, Filter::Box);
    let older = ("processor_config.json", json!({"processor_class": "CLIPProcessor"}));
    assert_eq!(of(&[config, plain, older]).filter, Filter::Bilinear);
}

#[test]
fn the_library_whose_weights_are_read_counts_and_a_difference_is_said() {
    let both = folder(&[
        ("config.json", tiny(Activation::QuickGelu)),
        ("open_clip_config.json", open_clip(json!({"resize_mode": "squash"}))),
    ]);
    let of = |weights| Description::of_folder(both.path(), weights).unwrap();
    for weights in [None, Some("model.safetensors")] {
        let found = of(weights);
        assert_eq!(
            (found.config.activation(), found.config.preprocessing.resize),
            ("quick-gelu".to_owned(), Resize::Shortest)
        );
        assert!(
            found.warnings[0].contains("config.json says quick-gelu, OpenAI's preprocessing; open_clip_config.json")
        );
    }
    let found = of(Some("open_clip_pytorch_model.bin"));
    assert_eq!((found.config.activation(), found.config.preprocessing.resize), ("gelu".to_owned(), Resize::Squash));
    assert!(found.place.ends_with("open_clip_config.json") && found.warnings.len() == 1);

    let agreeing =
        folder(&[("config.json", tiny(Activation::Gelu)), ("open_clip_config.json", open_clip(Value::Null))]);
    let found = Description::of_folder(agreeing.path(), None).unwrap();
    let other = Description::of_folder(agreeing.path(), Some("open_clip_model.safetensors")).unwrap();
    // 2 in config.json and "argmax" in the other are one rule.
    assert_eq!(found.config, other.config);
    assert!(found.warnings.is_empty());
}

#[test]
fn neighbours_speak_of_a_file_that_is_named_as_their_library_names_it() {
    let both = folder(&[("config.json", tiny(Activation::Gelu)), ("open_clip_config.json", open_clip(Value::Null))]);
    let place = |name: &str, hugging_face| {
        let found = Description::beside(&both.path().join(name), hugging_face).unwrap();
        found.map(|found| found.place.rsplit('/').next().unwrap().to_owned())
    };
    assert_eq!(place("open_clip_pytorch_model.bin", false).as_deref(), Some("open_clip_config.json"));
    assert_eq!(place("model.safetensors", true).as_deref(), Some("config.json"));
    assert_eq!(place("pytorch_model.bin", false).as_deref(), Some("config.json"));
    assert_eq!(place("classifier_checkpoint.pth", false), None);
    fs_err::write(both.path().join("config.json"), r#"{"model_type": "my-project", "width": 3}"#).unwrap();
    assert_eq!(place("pytorch_model.bin", false), None);
    fs_err::remove_file(both.path().join("config.json")).unwrap();
    assert_eq!(place("model.safetensors", false).as_deref(), Some("open_clip_config.json"));
    assert_eq!(place("model.safetensors", true), None);
    fs_err::write(both.path().join("open_clip_config.json"), "{").unwrap();
    let error = Description::beside(&both.path().join("open_clip_model.safetensors"), false).unwrap_err();
    assert!(error.to_string().contains("open_clip_config.json: not JSON"), "{error}");
}

#[test]
fn a_note_reads_back() {
    let mut config = ClipConfig::preset("vit-h-14").unwrap();
    config.preprocessing = Preprocessing { resize: Resize::Squash, filter: Filter::Lanczos, mean: [0.5; 3], std: STD };
    let noted = Description::noted(Path::new("x.safetensors"), &Description::note(&config)).unwrap();
    assert_eq!(noted.config, config);
    let error = Description::noted(Path::new("x.safetensors"), "{}").unwrap_err();
    assert_eq!(error.to_string(), "x.safetensors: its header's description: want a JSON object, found null");
}
