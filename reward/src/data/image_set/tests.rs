use super::*;

fn set(csv: &str) -> Result<ImageSet> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.csv");
    fs_err::write(&path, csv).unwrap();
    for name in ["1.png", "2.png", "3.png", "x.png", "y.png", "z.png"] {
        fs_err::write(folder.path().join(name), name).unwrap();
    }
    ImageSet::read(&path, None)
}

#[test]
fn images_pair_by_prompt_and_seed_in_any_order() {
    let tuned = set("prompt,path,seed\na,1.png,5\na,2.png,6\nb,3.png,5\n").unwrap();
    let base = set("seed,path,prompt\n5,x.png,b\n6,y.png,a\n7,z.png,a\n").unwrap();
    let Pairs { matched, mismatch } = tuned.pairs(&base).unwrap();
    assert_eq!(matched, [(1, 1), (2, 0)]);
    let wanted = "1 of 3 image(s) of set have no partner: \"a\" seed 5; \
                  1 of 3 image(s) of set have no partner: \"a\" seed 7";
    assert_eq!(mismatch.unwrap(), wanted);
    assert_eq!(tuned.pairs(&tuned).unwrap().mismatch, None);
    let other = set("prompt,path\nc,x.png\n").unwrap();
    let error = tuned.pairs(&other).unwrap_err().to_string();
    assert!(error.starts_with("no image pairs: 3 of 3 image(s) of set have no partner: \"a\" seed 5,"), "{error}");
}

#[test]
fn without_seeds_the_place_counts() {
    let seeds = |set: ImageSet| set.rows.iter().map(|row| row.seed).collect::<Vec<_>>();
    assert_eq!(seeds(set("prompt,path\na,1.png\nb,2.png\na,3.png\n").unwrap()), [0, 0, 1]);
}

#[test]
fn duplicates_are_named() {
    let refused = |csv| set(csv).unwrap_err().to_string();
    let seeds = refused("prompt,path,seed\na,1.png,5\nb,1.png,5\na,2.png,5\n");
    assert!(seeds.ends_with("1 duplicate row(s): rows 0 and 2 (\"a\", seed 5) (rows count from 0)"), "{seeds}");
    let images = refused("prompt,path\na,1.png\na,./1.png\n");
    assert!(images.ends_with("1 duplicate row(s): rows 0 and 1 (\"a\", ./1.png) (rows count from 0)"), "{images}");
}

#[test]
fn what_is_missing_is_named() {
    let error = set("prompt,path\na,1.png\na,none.png\n").unwrap_err();
    assert!(
        error.to_string().ends_with("1 image file(s) do not exist: row 1 (none.png) (rows count from 0)"),
        "{error}"
    );
    assert!(error.hint_text().unwrap().starts_with("relative paths start at "));
    let error = ImageSet::read(Path::new("/none"), None).unwrap_err();
    assert_eq!(error.to_string(), "/none does not exist");
}

#[test]
fn a_folder_has_captions_beside_or_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let refused = || ImageSet::read(folder.path(), None).unwrap_err().to_string();
    assert!(refused().ends_with("no images in this folder"));
    for (name, content) in [("b.png", ""), ("a.JPG", ""), ("a.txt", "a fox\n"), ("notes.md", "")] {
        fs_err::write(place(name), content).unwrap();
    }
    assert!(refused().contains("b.txt beside it"));
    fs_err::write(place("b.txt"), "an owl").unwrap();
    let set = ImageSet::read(folder.path(), None).unwrap();
    assert_eq!(set.prompts, ["a fox", "an owl"]);
    assert_eq!(set.name, folder.path().file_name().unwrap().to_str().unwrap());
    fs_err::write(place("captions.csv"), "prompt,path\nan owl,b.png\n").unwrap();
    let set = ImageSet::read(folder.path(), None).unwrap();
    assert_eq!((set.prompts, set.images[0].label()), (vec!["an owl".to_owned()], place("b.png").display().to_string()));
}

#[test]
fn seeds_are_64_bits_and_may_be_missing() {
    let seeds = |csv: &str| set(csv).unwrap().rows.iter().map(|row| row.seed).collect::<Vec<_>>();
    let csv = "prompt,path,seed\na,1.png,14932476290187345921\na,2.png,7\n";
    assert_eq!(seeds(csv), [14_932_476_290_187_345_921, 7]);
    // As pandas writes whole numbers once a gap has made them floats.
    assert_eq!(seeds("prompt,path,seed\na,1.png,3.0\na,2.png,\n"), [3, 1]);
    // What older tables of ours hold of a seed above 2^63.
    assert_eq!(seeds("prompt,path,seed\na,1.png,-1\n"), [u64::MAX]);
    let error = set("prompt,path,seed\na,1.png,18446744073709551616\n").unwrap_err().to_string();
    assert!(error.ends_with("line 2: `seed` is \"18446744073709551616\", wanted a whole number below 2^64"), "{error}");
}

#[test]
fn empty_prompts_of_a_table_are_said() {
    let set = set("prompt,path\na,1.png\n,2.png\n").unwrap();
    assert!(set.notes[0].ends_with("set.csv: the prompt is empty in 1 row(s): row 1 (2.png)"), "{:?}", set.notes);
}

#[test]
fn links_in_a_table_are_said_once() {
    let error = set("prompt,path\na,https://example.org/1.png\nb,s3://x/2.png\nc,3.png\nd,none.png\n").unwrap_err();
    let wanted = "2 image(s) are URLs: row 0 (https://example.org/1.png), row 1 (s3://x/2.png) (rows count from 0), \
                  wanted image files: only local files are read";
    assert!(error.to_string().ends_with(wanted), "{error}");
    assert!(error.hint_text().unwrap().starts_with("download first"));
}

#[test]
fn an_imagefolder_of_hugging_face_is_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| fs_err::write(folder.path().join(name), content).unwrap();
    write("a.png", "x");
    for (name, content) in [
        ("metadata.csv", "file_name,text\na.png,a fox\n"),
        ("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"a fox\"}\n"),
        ("captions.tsv", "path\tprompt\na.png\ta fox\n"),
        ("captions.json", "[{\"path\": \"a.png\", \"prompt\": \"a fox\"}]"),
    ] {
        write(name, content);
        let set = ImageSet::read(folder.path(), None).unwrap();
        let name_of_folder = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!((set.prompts, set.name.as_str()), (vec!["a fox".to_owned()], name_of_folder), "{name}");
        assert_eq!((set.images.len(), set.folder, set.notes.len()), (1, folder.path().to_owned(), 0), "{name}");
        fs_err::remove_file(folder.path().join(name)).unwrap();
    }
    write("metadata.csv", "file_name,text\na.png,a fox\n");
    write("b.png", "y");
    let set = ImageSet::read(folder.path(), None).unwrap();
    assert!(set.notes[0].ends_with("metadata.csv: 1 image(s) in its folder are not in it: b.png"), "{:?}", set.notes);
    fs_err::remove_file(folder.path().join("b.png")).unwrap();
    // Beside captions, a table of another program says nothing.
    write("metadata.csv", "id,size\na,3\n");
    write("a.txt", "an owl");
    assert_eq!(ImageSet::read(folder.path(), None).unwrap().prompts, ["an owl"]);
    write("captions.csv", "prompt,path\na bear,a.png\n");
    let set = ImageSet::read(folder.path(), None).unwrap();
    assert_eq!(set.prompts, ["a bear"]);
    assert!(set.notes[0].contains("metadata.csv is not read: "), "{:?}", set.notes);
}

#[test]
fn a_folder_of_tables_is_one_set_and_is_not_written_into() {
    let folder = tempfile::tempdir().unwrap();
    for place in ["m.csv", "parts"] {
        let table = folder.path().join(place);
        fs_err::create_dir(&table).unwrap();
        for (part, text) in
            [("part-0.csv", "prompt,path\na,1.png\n"), ("part-1.csv", "prompt,path\nb,1.png\n"), ("_SUCCESS", "")]
        {
            fs_err::write(table.join(part), text).unwrap();
        }
        fs_err::write(table.join("1.png"), "").unwrap();
        if place == "parts" {
            // With images in it, it is a folder of images.
            assert!(ImageSet::read(&table, None).unwrap_err().to_string().contains("1.txt beside it"));
            fs_err::remove_file(table.join("1.png")).unwrap();
            assert!(ImageSet::read(&table, None).unwrap_err().to_string().contains("2 image file(s) do not exist"));
            continue;
        }
        let set = ImageSet::read(&table, None).unwrap();
        assert_eq!((set.prompts.len(), set.folder.as_path(), set.name.as_str()), (2, folder.path(), "m.csv"));
    }
}
