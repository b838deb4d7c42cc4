//! Adam and AdamW against `torch.optim`, and their state saved and restored.

use reward::{native::AdamSettings, optim::Adam};
use tch::{Kind, Tensor};

use crate::fixture::{Fixture, golden, relative_norm, values};

struct Case {
    name: String,
    settings: AdamSettings,
}

fn description() -> serde_json::Value {
    serde_json::from_str(&fs_err::read_to_string(golden("optimizer.json")).unwrap()).unwrap()
}

fn cases() -> Vec<Case> {
    let description = description();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let cases = description["cases"].as_object().unwrap();
    cases
        .iter()
        .map(|(name, case)| Case {
            name: name.clone(),
            settings: AdamSettings {
                rate: 0.0,
                beta1: number(&description["betas"][0]),
                beta2: number(&description["betas"][1]),
                weight_decay: number(&case["weight_decay"]),
                epsilon: number(&description["epsilon"]),
                decoupled: case["optimizer"] == "AdamW",
            },
        })
        .collect()
}

/// The fixture's tensors as leaves with their gradient scales.
fn leaves(fixture: &Fixture) -> Vec<(String, Tensor, f64)> {
    let scales = description()["gradient_scales"].as_object().unwrap().clone();
    let leaf = |name: &str| fixture.torch(&format!("initial.{name}")).set_requires_grad(true);
    scales.iter().map(|(name, scale)| (name.clone(), leaf(name), scale.as_f64().unwrap())).collect()
}

fn handles(leaves: &[(String, Tensor, f64)]) -> Vec<(String, Tensor)> {
    leaves.iter().map(|(name, tensor, _)| (name.clone(), tensor.shallow_clone())).collect()
}

fn step(adam: &mut Adam, leaves: &[(String, Tensor, f64)], step: usize) {
    adam.zero_gradients();
    for (_, leaf, scale) in leaves {
        let gradient: Vec<f32> =
            (1..=leaf.numel()).map(|i| ((0.1 * i as f64 * step as f64).sin() * scale) as f32).collect();
        (leaf * Tensor::from_slice(&gradient).reshape(leaf.size())).sum(Kind::Float).backward();
    }
    adam.step(1e-2);
}

#[track_caller]
fn assert_near(what: &str, got: &Tensor, want: &[f32]) {
    let error = relative_norm(&values(got), want);
    assert!(error <= 1e-6, "{what}: {error:e}");
}

#[test]
fn a_hundred_steps_are_those_of_torch_optim() {
    let fixture = Fixture::open("optimizer.safetensors");
    for Case { name: case, settings } in cases() {
        let leaves = leaves(&fixture);
        let mut adam = Adam::new(handles(&leaves), settings);
        for now in 1..=100 {
            step(&mut adam, &leaves, now);
            if [1, 10, 100].contains(&now) {
                for (name, leaf, _) in &leaves {
                    let what = format!("{case}.step_{now}.{name}");
                    assert_near(&what, leaf, &fixture.floats(&what));
                }
            }
        }
        for (name, tensor) in adam.state() {
            let (name, part) = name.rsplit_once('.').unwrap();
            let theirs = match part {
                "mean" => "exp_avg",
                "square" => "exp_avg_sq",
                _ => {
                    assert_eq!(values(tensor), [100.0]);
                    continue;
                }
            };
            let what = format!("{case}.{theirs}.{name}");
            assert_near(&what, tensor, &fixture.floats(&what));
        }
    }
}

#[test]
fn a_restored_optimizer_goes_on_to_the_bit() {
    let fixture = Fixture::open("optimizer.safetensors");
    for Case { name: case, settings } in cases() {
        let whole = leaves(&fixture);
        let mut adam = Adam::new(handles(&whole), settings);
        (1..=50).for_each(|now| step(&mut adam, &whole, now));

        let saved: Vec<(String, Vec<f32>)> = adam.state().map(|(name, tensor)| (name, values(tensor))).collect();
        let restored: Vec<_> = whole
            .iter()
            .map(|(name, leaf, scale)| (name.clone(), leaf.detach().copy().set_requires_grad(true), *scale))
            .collect();
        let mut again = Adam::new(handles(&restored), settings);
        again
            .set_state(|name, shape| {
                let (_, values) = saved.iter().find(|(saved, _)| saved == name).ok_or_else(|| name.to_owned())?;
                Ok::<_, String>(Tensor::from_slice(values).reshape(shape))
            })
            .unwrap();

        (51..=100).for_each(|now| step(&mut adam, &whole, now));
        (51..=100).for_each(|now| step(&mut again, &restored, now));
        for ((name, leaf, _), (_, restored, _)) in whole.iter().zip(&restored) {
            assert_eq!(values(leaf), values(restored), "{case} {name}");
        }
        for ((name, state), (_, restored)) in adam.state().zip(again.state()) {
            assert_eq!(values(state), values(restored), "{case} {name}");
        }
    }
    let mut adam = Adam::new(handles(&leaves(&fixture)), cases()[0].settings);
    assert_eq!(adam.set_state(|name, _| Err(name.to_owned())), Err("matrix.mean".to_owned()));
}

#[test]
fn a_parameter_that_no_loss_reached_keeps_value_and_state() {
    let leaf = || Tensor::from_slice(&[1.0_f32, -2.0]).set_requires_grad(true);
    let [reached, unreached] = [leaf(), leaf()];
    let settings =
        AdamSettings { rate: 0.0, beta1: 0.9, beta2: 0.999, weight_decay: 0.1, epsilon: 1e-8, decoupled: true };
    let parameters =
        vec![("reached".to_owned(), reached.shallow_clone()), ("unreached".to_owned(), unreached.shallow_clone())];
    let mut adam = Adam::new(parameters, settings);
    for _ in 0..3 {
        adam.zero_gradients();
        reached.sum(Kind::Float).backward();
        adam.step(1e-2);
    }
    assert_ne!(values(&reached), [1.0, -2.0]);
    assert_eq!(values(&unreached), [1.0, -2.0]);
    let unreached = adam.state().filter(|(name, _)| name.starts_with("unreached."));
    assert!(unreached.into_iter().all(|(_, tensor)| values(tensor).iter().all(|value| *value == 0.0)));
}
