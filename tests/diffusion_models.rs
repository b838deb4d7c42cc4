//! `diffusion verify` and `diffusion export`.

use crate::{
    diffusion_generate::{TINY, pixels},
    harness::Workspace,
};

#[test]
fn verify_says_that_our_models_are_theirs() {
    let work = Workspace::new();
    let command = "diffusion verify --model random:sd-tiny --device cpu";
    let report = work.run(&format!("{command} --json")).json();
    let components = report["components"].as_array().unwrap();
    let names: Vec<_> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["text_encoder", "unet", "vae_encoder", "vae_decoder"]);
    for component in components {
        assert_eq!(component["tolerance"], 1e-4);
        let (absolute, relative) = (component["max_abs"].as_f64().unwrap(), component["max_rel"].as_f64().unwrap());
        assert!(absolute > 0.0 && relative < 1e-4, "{component}");
    }
    assert_eq!(report["verdict"], "match");
    let text = work.run(command);
    text.succeeds().check(text.stdout.ends_with("verdict: match\n"), "the verdict");
    let half = work.run(&format!("{command} --precision bf16 --json")).json();
    let error = half["components"][1]["max_rel"].as_f64().unwrap();
    assert!((1e-4..3e-2).contains(&error), "bf16 is used: {error}");
    work.run("diffusion verify").fails(2, &["--model", "missing"]);
}
