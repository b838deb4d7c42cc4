//! Pictures that are none, are too large or end early.

use crate::{
    support::harness::Workspace,
    support::triplets::{self, Row},
};

/// A workspace with `t.parquet`: one good row, then one whose negative is `golden/{picture}`.
fn with_picture(picture: &str) -> Workspace {
    let work = Workspace::new();
    let row =
        |negative: &str| -> Row { ["fox", "golden/pixels/rgb.png", &format!("golden/{negative}")].map(str::to_owned) };
    triplets::write(&work.path("t.parquet"), &[row("pixels/photo.jpg"), row(picture)]);
    work
}

const TRAIN: &str = "reward train --training-file t.parquet --training-mode visual_last_layer --model random:tiny \
    --device cpu --batch-size 2 --n-epochs 1 --save-folder out";
const VALIDATE: &str = "reward validate t.parquet --model random:tiny --device cpu";

#[test]
fn what_is_no_picture_is_named_with_its_row() {
    for (picture, what) in
        [("tables/text.jpg", "wanted an image"), ("tables/zero.jpg", "empty"), ("tables/none.png", "")]
    {
        let work = with_picture(picture);
        if cfg!(feature = "torch") {
            let level = if picture.ends_with("zero.jpg") { "full" } else { "headers" };
            let trained = work.run(&format!("{TRAIN} --preflight {level}"));
            trained.fails(1, &["t.parquet row 1", picture, what]).hints("--on-bad-image skip");
            assert!(!work.path("out/config.toml").exists());
            work.run(&format!("{TRAIN} --preflight off")).fails(1, &[picture, what]);
        }
        work.run(VALIDATE).fails(1, &[picture, what]);
        let figures = work.run(&format!("{VALIDATE} --on-bad-image skip --json"));
        figures.says("left out");
        assert_eq!((&figures.json()["pairs"], &figures.json()["skipped"]), (&1.into(), &1.into()));
        let score = format!("reward score --model random:tiny --device cpu --prompt fox golden/{picture} --json");
        work.run(&score).fails(1, &[picture, what]);
        assert!(work.run(&format!("{score} --on-bad-image skip")).json()[0]["score"].is_null());
    }
}

#[cfg(feature = "torch")]
#[test]
fn rows_with_bad_pictures_are_left_out_on_request() {
    let work = with_picture("tables/text.jpg");
    let trained = work.run(&format!("{TRAIN} --on-bad-image skip"));
    trained.succeeds().says("1 image cannot be read, in 1 row, which are left out").says("tables/text.jpg");
    assert_eq!(work.losses("out").len(), 1);
}

#[test]
fn a_picture_that_ends_early_is_used_and_counted() {
    let work = with_picture("pixels/truncated_420.jpg");
    let said = "1 truncated image(s) were decoded as far as they went: golden/pixels/truncated_420.jpg";
    if cfg!(feature = "torch") {
        let full = work.run(&format!("{TRAIN} --preflight full --strict"));
        full.fails(1, &["1 truncated image", "t.parquet row 1", "golden/pixels/truncated_420.jpg"]);
        work.run(TRAIN).succeeds().says(said);
        assert_eq!(work.losses("out").len(), 1);
    }
    work.run(VALIDATE).succeeds().says(said);
}

/// A score of a truncated picture is in the table, but is never taken for that of a whole one.
#[test]
fn evaluate_warns_of_truncated_pictures_every_time() {
    let work = Workspace::new();
    let (whole, cut) = (work.bytes("golden/pixels/420.jpg"), work.bytes("golden/pixels/truncated_420.jpg"));
    work.write("a.jpg", work.bytes("golden/pixels/444.jpg"));
    work.write("b.jpg", cut);
    work.write("set.csv", "prompt,path\nfox,a.jpg\nfox,b.jpg\n");
    let metrics = if cfg!(feature = "torch") { "saturation,clip-score=random:tiny" } else { "clip-score=random:tiny" };
    let command = format!("evaluate --device cpu --images set.csv --metrics {metrics}");
    let said = "1 truncated image(s) were decoded as far as they went: b.jpg";
    let each = metrics.split(',').count();
    for new in [2 * each, each] {
        work.run(&command).succeeds().says(said).says(&format!("{new} of them new"));
    }
    work.write("b.jpg", whole);
    for new in [each, 0] {
        let repaired = work.run(&command);
        repaired.succeeds().says(&format!("{} scores in scores.parquet, {new} of them new", 2 * each));
        repaired.check(!repaired.stderr.contains("truncated"), "no word of truncation");
    }
}

#[test]
fn a_picture_over_the_limit_is_refused_and_the_flag_named() {
    let work = with_picture("pixels/one_pixel.png");
    for command in if cfg!(feature = "torch") { &[TRAIN, VALIDATE][..] } else { &[VALIDATE] } {
        let bomb = work.run(&format!("{command} --max-pixels 100"));
        bomb.fails(1, &["golden/pixels/", "pixels", "100"]);
        bomb.check(bomb.stderr.contains("--max-pixels"), "the flag that raises the limit");
    }
    work.run(&format!("{VALIDATE} --max-pixels 100000000")).succeeds();
}
