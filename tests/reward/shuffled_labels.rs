//! Where labels are drawn by lot there is nothing to learn, and nothing is found.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    support::harness::Workspace,
    support::triplets::{self, Row},
};

fn shuffled(rows: &[Row], seed: u64) -> Vec<Row> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let toss = |[prompt, positive, negative]: Row| {
        if generator.random_bool(0.5) { [prompt, negative, positive] } else { [prompt, positive, negative] }
    };
    rows.iter().cloned().map(toss).collect()
}

#[test]
fn trainings_on_shuffled_labels_find_nothing() {
    let work = Workspace::new();
    work.run("demo --data-only data --triplets 400").succeeds();
    let split = |name: &str| triplets::read(&work.path(&format!("data/{name}.parquet")));
    let (training, held_out) = (split("train")[..160].to_vec(), split("test"));
    let accuracies: Vec<f64> = (0..10)
        .map(|seed| {
            triplets::write(&work.path("data/shuffled.parquet"), &shuffled(&training, seed));
            triplets::write(&work.path("data/held-out.parquet"), &shuffled(&held_out, seed + 100));
            let run = format!("run-{seed}");
            let command = format!(
                "reward train --training-file data/shuffled.parquet --validation-file data/held-out.parquet \
                 --training-mode all --model random:tiny --device cpu --batch-size 16 --n-epochs 1 \
                 --learning-rate 1e-3 --checkpoint-every 0 --seed {seed} --save-folder {run}"
            );
            work.run(&command).succeeds();
            let last = work.metrics(&run, "validation_accuracy").pop().unwrap();
            assert_eq!(last["step"], 10);
            fs_err::remove_dir_all(work.path(&run)).unwrap();
            last["validation_accuracy"].as_f64().unwrap()
        })
        .collect();
    let count = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / count;
    let variance = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let standard_error = (variance / count).sqrt();
    assert!((mean - 0.5).abs() <= 3.0 * standard_error, "mean {mean}, standard error {standard_error}: {accuracies:?}");
}
