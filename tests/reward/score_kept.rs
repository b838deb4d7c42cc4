//! `reward score` that is stopped, killed or fails keeps what it scored, and writes over nothing that is not its own.

use crate::support::harness::Workspace;

const IMAGES: usize = 1500;

/// A table of many images, a batch each, so that a run takes a few seconds.
fn many() -> (Workspace, String) {
    let work = Workspace::new();
    fs_err::create_dir(work.path("many")).unwrap();
    let pixels = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pixels");
    let mut table = "prompt,path,artist\n".to_owned();
    for index in 0..IMAGES {
        let name = ["grey.jpg", "rgb.png"][index % 2];
        let path = format!("{index}-{name}");
        std::os::unix::fs::symlink(format!("{pixels}/{name}"), work.path("many").join(&path)).unwrap();
        table += &format!("prompt {},{path},me\n", index % 7);
    }
    work.write("many/m.csv", table);
    let command = "reward score --model random:tiny --device cpu --manifest many/m.csv --batch-size 1 --num-workers 1";
    (work, command.to_owned())
}

/// How many images the parts of an output hold.
fn kept(work: &Workspace, output: &str) -> usize {
    let names = fs_err::read_dir(work.path(&format!("{output}.parts"))).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ranges = names.filter_map(|name| {
        let (start, end) = name.strip_suffix(".part")?.split_once('-')?;
        Some(end.parse::<usize>().unwrap() - start.parse::<usize>().unwrap())
    });
    ranges.sum()
}

#[test]
fn the_same_command_goes_on_after_any_end() {
    let (work, command) = many();
    work.run(&format!("{command} --output whole.csv")).succeeds();
    let whole = work.text("whole.csv");
    assert_eq!(whole.lines().next(), Some("path,prompt,score,artist"));
    assert!(!work.path("whole.csv.parts").exists());
    for (signal, output) in [("INT", "int.csv"), ("TERM", "term.csv"), ("KILL", "kill.csv")] {
        let command = format!("{command} --output {output}");
        let ended = work.start_until(&command, &format!("{output}.parts"));
        // The first part is being written.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let ended = ended.signal(signal);
        match signal {
            "INT" => ended.exits(130).says("the same command goes on from them"),
            "TERM" => ended.exits(143).says("the same command goes on from them"),
            _ => ended.dies_of(9),
        };
        assert!(!work.path(output).exists(), "{ended}");
        let kept = kept(&work, output);
        assert!((1..IMAGES).contains(&kept), "{kept}\n{ended}");
        let gone_on = work.run(&command);
        gone_on.succeeds().says(&format!("{kept} of {IMAGES} scores are in {output}.parts already"));
        gone_on.says(&format!("images {}/{0}", IMAGES - kept));
        assert_eq!(work.text(output), whole, "{signal}");
        assert!(!work.path(&format!("{output}.parts")).exists());
    }
}

/// A bad picture that only decoding finds; before that, one that is not there costs nothing.
#[test]
fn a_bad_last_row_costs_nothing() {
    let work = Workspace::new();
    let whole = work.bytes("golden/pixels/lossy.webp");
    work.write("bad.webp", &whole[..whole.len() - 20]);
    work.write("m.csv", "prompt,path\na,golden/pixels/rgb.png\nb,golden/pixels/grey.jpg\nc,bad.webp\n");
    let command = "reward score --model random:tiny --device cpu --batch-size 1 --output s.csv --manifest m.csv";
    work.run(command).fails(1, &["bad.webp"]).says("2 of 3 scores are kept in s.csv.parts");
    let skipped = work.run(&format!("{command} --on-bad-image skip"));
    skipped.succeeds().says("2 of 3 scores are in s.csv.parts already").says("2 scores in s.csv, 1 row(s) without one");

    work.write("none.csv", "prompt,path\na,golden/pixels/rgb.png\nb,none.png\nc,none.jpg\n");
    let missing = "reward score --device cpu --model no/such/model --manifest none.csv";
    let wanted = ["2 of 3 image(s) cannot be read: none.png does not exist; none.jpg does not exist"];
    work.run(missing).fails(1, &wanted).hints("--on-bad-image skip");
}

/// Prompts that are cut, another root, and places that cannot be written: before a model is looked for.
#[test]
fn what_is_asked_is_checked_and_said() {
    let work = Workspace::new();
    let long = "a red fox ".repeat(60);
    let score = "reward score --model random:tiny --device cpu";
    work.run(&format!("{score} --prompt '{long}' golden/pixels/rgb.png")).succeeds().says("1 prompt(s) are longer");
    work.write("golden.csv", "prompt,path\nfox,rgb.png\n");
    let at = |root: &str| format!("{score} --manifest golden.csv --image-root {root} --json");
    let rooted = work.run(&at("golden/pixels")).json();
    let typed = work.run(&format!("{score} --prompt fox rgb.png --image-root golden/pixels --json")).json();
    assert_eq!(rooted, typed);
    work.run(&at("golden")).fails(1, &["golden/rgb.png does not exist"]);

    let nowhere = "reward score --device cpu --model no/such/model --manifest golden.csv --image-root golden/pixels";
    fs_err::create_dir(work.path("folder.csv")).unwrap();
    std::os::unix::fs::symlink("away", work.path("dangling.csv")).unwrap();
    work.run(&format!("{nowhere} --output s.tsv")).fails(2, &["s.tsv"]);
    work.run(&format!("{nowhere} --output folder.csv")).fails(1, &["folder.csv", "folder"]).hints("--output");
    work.run(&format!("{nowhere} --output /proc/s.csv")).fails(1, &["/proc/s.csv"]).hints("--output");
    work.run(&format!("{nowhere} --output dangling.csv")).fails(1, &["dangling.csv is a link to away"]);
    work.write("own.csv", "user,score\nx,1\n");
    work.run(&format!("{nowhere} --output own.csv")).fails(1, &["own.csv is there already"]).hints("--output");
    assert_eq!(work.text("own.csv"), "user,score\nx,1\n");
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn a_full_disk_leaves_the_earlier_table() {
    let work = Workspace::new();
    work.write("m.csv", "prompt,path\na,golden/pixels/rgb.png\nb,golden/pixels/grey.jpg\n");
    let score = "reward score --model random:tiny --device cpu --manifest m.csv --output s.csv";
    work.run(score).succeeds();
    let earlier = work.text("s.csv");
    let full = "ulimit -f 0; trap '' XFSZ;";
    work.run_after(full, &format!("{score} --seed 3")).fails(1, &["s.csv", "too large"]);
    assert_eq!(work.text("s.csv"), earlier);
    let evaluate = "evaluate --device cpu --images m.csv --metrics social-reward=random:tiny";
    work.run_after(full, evaluate).fails(1, &["scores.parquet", "too large"]);
    let left = fs_err::read_dir(work.path("")).unwrap().count();
    assert_eq!(left, 4, "the links, the table and its scores");
}

#[test]
fn parts_of_several_processes_make_one_table() {
    let (work, command) = many();
    let command = command.replace("--batch-size 1", "--batch-size 7");
    work.run(&format!("{command} --output whole.parquet")).succeeds();
    let shard = |shard: &str| format!("{command} --output shards.parquet --shard {shard}");
    // One is killed, and started again after the others.
    let killed = work.start_until(&shard("1/3"), "shards.parquet.parts");
    killed.signal("KILL").dies_of(9);
    // It may have kept its last part already, and is then killed too late.
    let parts = fs_err::read_dir(work.path("shards.parquet.parts")).unwrap().map(|entry| entry.unwrap().path());
    if let Some(last) = parts.filter(|path| path.extension().is_some_and(|ending| ending == "part")).max() {
        fs_err::remove_file(last).unwrap();
    }
    for part in ["2/3", "0/3"] {
        work.run(&shard(part)).succeeds().says(&format!("part {part} is scored"));
        assert!(!work.path("shards.parquet").exists());
    }
    work.run(&shard("1/3")).succeeds().says(&format!("{IMAGES} scores in shards.parquet"));
    assert_eq!(work.bytes("shards.parquet"), work.bytes("whole.parquet"));
    assert!(!work.path("shards.parquet.parts").exists());
    // By a launcher: every process takes its own part.
    let ranks = work.run_ranks(3, &format!("{command} --output ranks.parquet"));
    for rank in &ranks {
        rank.succeeds();
    }
    assert_eq!(work.bytes("ranks.parquet"), work.bytes("whole.parquet"));
    work.run(&shard("3/3")).fails(2, &["--shard", "3/3", "parts go from 0"]);
    work.run(&format!("{command} --shard 0/2")).fails(2, &["--output is missing"]);
}
