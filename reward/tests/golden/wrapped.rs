//! A CLIP under what trainers wrap it in, as PyTorch writes it: `tests/golden/weights.py`.

use reward::weights::{
    Checkpoint, OpenOptions,
    file::TensorFile,
    save::{ReadValues, named_tensors},
};

use crate::{
    fixture::{Fixture, golden, golden_text},
    models::refusal,
};

fn open(name: &str, weights: Option<&str>) -> reward::Result<Checkpoint> {
    Checkpoint::open(&golden_text(&format!("weights/{name}")), OpenOptions { weights, ..OpenOptions::default() })
}

type Parameters = Vec<(String, Vec<usize>, Vec<f32>)>;

fn parameters(checkpoint: reward::Result<Checkpoint>) -> Parameters {
    checkpoint.unwrap().parameters().collect::<Result<_, _>>().unwrap()
}

/// The fixture's second model has a `logit_scale` that is larger by 1.
fn averaged(mut parameters: Parameters) -> Parameters {
    let (.., scale) = parameters.iter_mut().find(|(name, ..)| name == "logit_scale").unwrap();
    *scale = vec![half::f16::from_f32(scale[0] + 1.0).to_f32()];
    parameters
}

#[test]
fn whatever_wraps_a_model_its_tensors_are_the_same() {
    let plain = parameters(open("plain.pt", None));
    for name in ["module.pt", "parameters.pt", "lightning.pt", "lightning.pt#trainer", "plain.pt#."] {
        assert!(parameters(open(name, None)) == plain, "{name}");
    }
    assert!(parameters(open("averaged.pt", None)) == averaged(plain));
}

#[test]
fn of_two_models_in_a_file_one_has_to_be_chosen() {
    let error = refusal(open("ema.pt", None));
    assert!(error.to_string().ends_with("ema.pt: holds 2 models: `model.module`, `model_ema.module`"), "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("--weights NAME") && hint.contains("ema.pt#model.module"), "{hint}");
    let plain = parameters(open("plain.pt", None));
    for name in ["model", "model.module"] {
        assert!(parameters(open("ema.pt", Some(name))) == plain, "{name}");
        assert!(parameters(open(&format!("ema.pt#{name}"), None)) == plain, "{name}");
    }
    assert!(parameters(open("ema.pt", Some("model_ema"))) == averaged(plain));
    let error = refusal(open("ema.pt", Some("best"))).to_string();
    assert!(error.ends_with("ema.pt: no weights `best`: it holds `model.module`, `model_ema.module`"), "{error}");
    let error = refusal(open("plain.pt", Some("ema"))).to_string();
    assert!(error.ends_with("plain.pt: no weights `ema`: it holds `.`"), "{error}");
}

#[test]
fn fp8_is_read_as_torch_reads_it() {
    let golden = Fixture::open("weights/fp8.safetensors");
    for file in ["fp8.pt", "fp8_finite.safetensors"] {
        let file = TensorFile::open(&self::golden("weights").join(file)).unwrap();
        for name in ["e4m3", "e5m2"] {
            let wanted: Vec<f32> = golden.floats(&format!("{name}_as_float"));
            let wanted: Vec<f32> = wanted.into_iter().filter(|value| value.is_finite()).collect();
            assert_eq!(file.read(name).unwrap(), wanted, "{name}");
        }
    }
    let file = TensorFile::open(&self::golden("weights/fp8.safetensors")).unwrap();
    let error = file.read("e4m3").unwrap_err().to_string();
    assert!(error.ends_with("tensor `e4m3`: element 127 is NaN, infinite or too large for fp32"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let lazy = parameters(open("plain.pt", None)).into_iter().map(|(name, shape, mut values)| {
        if name == "visual.proj" {
            values[5] = f32::NAN;
        }
        (name, shape, Box::new(move || Ok(values.clone())) as ReadValues)
    });
    named_tensors(&path, lazy.collect()).unwrap();
    let checkpoint = Checkpoint::open(path.to_str().unwrap(), OpenOptions::default()).unwrap();
    let error = checkpoint.parameters().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("nan.safetensors: tensor `visual.proj`: element 5 is NaN"), "{error}");
    assert!(error.hint_text().unwrap().contains("earlier checkpoint"));
}
