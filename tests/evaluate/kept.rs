//! `evaluate` that fails or is stopped keeps what it computed, and no run computes a score that the table has.

use image::{Rgb, RgbImage};

use crate::{
    evaluate::figures::{EVALUATE, two_sets, write_set},
    support::harness::{Finished, Workspace},
};

/// Scores of the run, and how many of them were new.
#[track_caller]
fn counts(run: &Finished) -> [usize; 2] {
    run.succeeds();
    let line = run.stderr.lines().find(|line| line.contains(" scores in ")).unwrap();
    let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn metrics_in_turn_compute_nothing_twice() {
    let work = two_sets();
    let sets = "--images tuned/set.csv --baseline base/set.csv";
    let run = |metrics: &str| counts(&work.run(&format!("evaluate --device cpu {sets} --metrics {metrics}")));
    let (first, second) = ("social-reward=random:tiny", "clip-score=random:tiny");
    assert_eq!(run(first), [24, 24]);
    assert_eq!(run(second), [24, 24]);
    assert_eq!(run(first), [24, 0]);
    assert_eq!(run(&format!("{first},{second},diversity")), [96, 48]);
    assert_eq!(run(&format!("{second},diversity --clip random:tiny")), [72, 0]);
    // Another set beside: the table of the first stays as it was, and diversity is that of each set alone.
    write_set(&work, "other", 120);
    let other = format!(
        "evaluate --device cpu --images other/set.csv --baseline base/set.csv --output tuned --metrics {first}"
    );
    assert_eq!(counts(&work.run(&other)), [24, 12]);
    assert_eq!(counts(&work.run(&format!("{other},diversity"))), [72, 24]);
    assert_eq!(run(&format!("{first},{second},diversity")), [96, 0]);
}

/// Two metrics of one name are labelled by their paths; their scores are those of either alone.
#[test]
fn a_label_with_a_path_is_no_other_metric() {
    let work = two_sets();
    let run =
        |metrics: &str| counts(&work.run(&format!("evaluate --device cpu --images tuned/set.csv --metrics {metrics}")));
    assert_eq!(run("social-reward=random:tiny"), [12, 12]);
    work.run("reward export --model random:tiny --format hf --output exported").succeeds();
    assert_eq!(run("social-reward=random:tiny,social-reward=exported"), [24, 12]);
    assert_eq!(run("social-reward=exported"), [12, 0]);
}

/// A mistyped path costs nothing, also where it is the last metric's.
#[test]
#[cfg(feature = "torch")]
fn every_checkpoint_is_looked_for_first() {
    let work = two_sets();
    for metric in ["clip-score=nowhere.pt", "aesthetic=nowhere.pth --clip random:tiny", "image-reward=nowhere"] {
        let metrics = format!("social-reward=random:tiny,{metric}");
        let run = work.run(&format!("evaluate --device cpu --images tuned/set.csv --metrics {metrics}"));
        run.fails(1, &["nowhere"]);
        assert!(!work.path("tuned/scores.parquet").exists(), "{metric}");
    }
}

#[test]
fn a_broken_picture_costs_only_what_was_not_reached() {
    let work = two_sets();
    let last = work.bytes("base/2-3.png");
    work.write("base/2-3.png", "no picture");
    let metrics =
        if cfg!(feature = "torch") { "saturation,social-reward=random:tiny" } else { "social-reward=random:tiny" };
    let command = format!(
        "evaluate --device cpu --images tuned/set.csv --baseline base/set.csv --batch-size 5 --metrics {metrics},clip-score=random:tiny"
    );
    // Four passes of five before the broken one.
    work.run(&command).fails(1, &["2-3.png"]).says("new scores are kept in tuned/scores.parquet");
    let kept = if cfg!(feature = "torch") { 23 } else { 20 };
    work.run(&command).fails(1, &["2-3.png"]);
    work.write("base/2-3.png", last);
    let whole = 24 * (metrics.split(',').count() + 1);
    let [scores, new] = counts(&work.run(&command));
    assert_eq!(scores, whole);
    assert_eq!(new, whole - kept);
    assert_eq!(counts(&work.run(&command)), [whole, 0]);
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let work = Workspace::new();
    fs_err::create_dir(work.path("many")).unwrap();
    let mut table = "prompt,path\n".to_owned();
    for index in 0..400_u32 {
        let path = format!("{index}.png");
        let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([index as u8, (index >> 8) as u8, (x * y) as u8]));
        picture.save(work.path("many").join(&path)).unwrap();
        table += &format!("prompt {},{path}\n", index % 7);
    }
    work.write("many/captions.csv", table);
    let command = format!("{EVALUATE},clip-score=random:tiny --images many --batch-size 2 --num-workers 1");
    let stopped = work.start_until(&command, "many/scores.parquet").signal("INT");
    stopped.exits(130).says("interrupted").check(stopped.stdout.is_empty(), "no data");
    let line = stopped.stderr.lines().find(|line| line.contains(" new scores are kept in ")).unwrap();
    let kept: usize = line.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((400..800).contains(&kept), "{kept}");
    assert_eq!(counts(&work.run(&command)), [800, 800 - kept]);
}

/// README's own two commands, in one folder, and a table of the user's own.
#[test]
fn a_table_that_evaluate_did_not_write_stays() {
    let work = two_sets();
    let score = "reward score --model random:tiny --device cpu --manifest tuned/set.csv --output tuned/scores.parquet";
    work.run(score).succeeds();
    let theirs = work.bytes("tuned/scores.parquet");
    let command = format!("{EVALUATE} --images tuned/set.csv");
    let wanted = ["tuned/scores.parquet is no table that evaluate wrote", "it has the columns path, prompt, score"];
    work.run(&command).fails(1, &wanted).hints("--output DIR");
    assert!(work.bytes("tuned/scores.parquet") == theirs);
    assert_eq!(counts(&work.run(&format!("{command} --output elsewhere"))), [12, 12]);
    // The other way round: score does not write over evaluate's.
    let other = score.replace("--output tuned", "--output elsewhere");
    work.run(&other).fails(1, &["elsewhere/scores.parquet is there already"]).hints("--output");
    assert_eq!(counts(&work.run(&format!("{command} --output elsewhere"))), [12, 0]);
}

/// What cannot be written is found before an image is read, of which one is broken here.
#[test]
fn places_are_checked_before_images() {
    let work = two_sets();
    work.write("tuned/0-0.png", "no picture");
    work.write("page.html", "<html>mine</html>");
    std::os::unix::fs::symlink("away", work.path("dangling")).unwrap();
    let command = format!("{EVALUATE} --images tuned/set.csv");
    for (flags, wanted, hint) in [
        ("--output /proc/x", "/proc/x", "--output"),
        ("--output page.html", "page.html cannot be written to: it is a file", "--output"),
        ("--output dangling", "dangling is a link to away, which does not exist", "link"),
        ("--report /proc/x/r.html", "/proc/x/r.html", "--report"),
        ("--report tuned", "tuned cannot be written: it is a folder", "--report"),
        ("--report dangling", "dangling is a link to away, which does not exist", "link"),
        ("--report page.html", "page.html is there already and is no report of evaluate", "--report"),
    ] {
        work.run(&format!("{command} {flags}")).fails(1, &[wanted]).hints(hint);
    }
    assert_eq!(work.text("page.html"), "<html>mine</html>");
    assert!(!work.path("tuned/scores.parquet").exists());
}

#[test]
fn two_at_once_are_both_in_the_table() {
    let work = two_sets();
    std::thread::scope(|scope| {
        for metric in ["social-reward", "clip-score"] {
            let work = &work;
            let metrics = format!("evaluate --device cpu --metrics {metric}=random:tiny --images tuned/set.csv");
            scope.spawn(move || {
                work.run(&metrics).succeeds();
            });
        }
    });
    let both =
        "evaluate --device cpu --metrics social-reward=random:tiny,clip-score=random:tiny --images tuned/set.csv";
    assert_eq!(counts(&work.run(both)), [24, 0]);
}
