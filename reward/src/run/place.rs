//! The check of a run's folder before the run begins or goes on: it holds nothing of its names, or all of an earlier part.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use super::{checkpoints, metrics};
use crate::{Error, Result, files::followed, text};

/// The settings of a run, kept as its `config.toml`.
pub const CONFIG: &str = "config.toml";

/// Settings of a trainer, and what it writes under which names.
pub trait Settings: Serialize + DeserializeOwned {
    /// The flag that names the run's folder, without dashes in front.
    const FLAG: &'static str;

    /// The run's folder.
    fn folder(&self) -> &Path;
    /// Folders that a run replaces, beside `checkpoints/`.
    fn folders(&self) -> &'static [&'static str];
    /// The folder among them that only a finished run has.
    fn result(&self) -> &'static str;
    /// Names of the settings that differ from `earlier` and would make a resumed run another run.
    fn changed(&self, earlier: &Self) -> Vec<String>;
    /// Steps after which a checkpoint is written at the latest; 0 where that is not known.
    fn checkpoint_every(&self) -> usize;
    /// Files of a checkpoint that hold tensors.
    fn tensor_files(&self) -> &'static [&'static str];
}

/// Looks at the folder of `config` without changing it. Gives whether a run is there to go on with.
///
/// # Errors
/// A name of the run's is taken by something else or a link to nothing. Another run is there, or parts of one (`config.toml` or
/// `checkpoints/` is missing). With `resume`, its settings are others (named) or cannot be read.
pub fn check<C: Settings>(config: &C, resume: bool) -> Result<bool> {
    let (run, flag) = (config.folder(), C::FLAG);
    let another = format!("give another --{flag}");
    let named = |error: Error| {
        Error::data(format!("{}: {error}", flag.replace('-', " "))).hint(error.hint_text().unwrap_or(&another))
    };
    if !is_there(run).map_err(named)? {
        return Ok(false);
    }
    let mut taken = Vec::new();
    for name in config.folders().iter().chain(&[checkpoints::FOLDER]) {
        if is_there(&run.join(name)).map_err(named)? && !is_empty(&run.join(name))? {
            taken.push(format!("{name}/"));
        }
    }
    let place = run.display();
    let settings = run.join(CONFIG);
    if fs_err::symlink_metadata(&settings).is_err() {
        if fs_err::metadata(run.join(metrics::FILE)).is_ok_and(|file| file.len() > 0) {
            taken.push(metrics::FILE.to_owned());
        }
        if taken.is_empty() {
            return Ok(false);
        }
        let hint = match resume {
            true => format!("bring its {CONFIG} back to go on with the run that it is of, or {another}"),
            false => format!("{another}, or move them away"),
        };
        return Err(Error::usage(format!("{place} holds {} but no {CONFIG}", taken.join(", "))).hint(hint));
    }
    if !resume {
        return Err(
            Error::usage(format!("{place} holds another run")).hint(format!("--resume goes on with it; or {another}"))
        );
    }
    let earlier: C = read_config(&settings)
        .map_err(|error| error.hint(format!("bring it back as the run wrote it, or start another run: {another}")))?;
    let changed = config.changed(&earlier);
    if !changed.is_empty() {
        return Err(Error::usage(format!("--resume: {} differ(s) from {place}/{CONFIG}", changed.join(", ")))
            .hint(format!("use the settings of {place}/{CONFIG}, or start another run: {another}")));
    }
    let lost = |what: &str| {
        Error::usage(format!("--resume: {place} holds a {CONFIG} {what}"))
            .hint(format!("bring its checkpoints back, or start another run: {another}"))
    };
    if !run.join(checkpoints::FOLDER).is_dir() {
        return Err(lost("but no checkpoints/"));
    }
    if checkpoints::list(run)?.is_empty() {
        let result = format!("{}/", config.result());
        if taken.contains(&result) {
            return Err(lost(&format!("and {result} but no checkpoint")));
        }
        let (last, due) = (metrics::last_step(run).unwrap_or(0), earlier.checkpoint_every());
        if due > 0 && last > due {
            return Err(lost(&format!("and a {} of {last} steps but no checkpoint", metrics::FILE)));
        }
    }
    Ok(true)
}

/// [`check`], where there is no run yet: before the folder is locked, so that what is not ours stays without a trace. Of a run
/// that is there, the lock says first whether it is at work.
///
/// # Errors
/// As [`check`].
pub fn check_new(config: &impl Settings, resume: bool) -> Result<()> {
    if fs_err::symlink_metadata(config.folder().join(CONFIG)).is_ok() {
        return Ok(());
    }
    check(config, resume).map(drop)
}

/// Settings from a `config.toml`.
///
/// # Errors
/// It cannot be read as these settings; the error names it.
pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C> {
    toml::from_str(&text::read(path, "the settings of a run")?)
        .map_err(|error| Error::data(format!("{}: {}", path.display(), error.message().replace('\n', " "))))
}

/// Whether a folder is there, links followed.
fn is_there(path: &Path) -> Result<bool> {
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(Error::data(format!("{} is a file, wanted a folder", path.display()))),
        Err(_) => followed(path).map(|_| false),
    }
}

/// Hidden entries do not count: leftovers of ours, `.DS_Store`.
fn is_empty(folder: &Path) -> Result<bool> {
    for entry in fs_err::read_dir(folder)? {
        if !entry?.file_name().to_string_lossy().starts_with('.') {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;
    use crate::{ErrorKind, event::Silent, run::resume::resume_point};

    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Trial {
        #[serde(skip)]
        folder: PathBuf,
        rate: f64,
    }

    impl Settings for Trial {
        const FLAG: &'static str = "save-folder";
        fn folder(&self) -> &Path {
            &self.folder
        }
        fn folders(&self) -> &'static [&'static str] {
            &["best", "final"]
        }
        fn result(&self) -> &'static str {
            "final"
        }
        fn changed(&self, earlier: &Self) -> Vec<String> {
            crate::run::changed_settings(self, earlier, &[])
        }
        fn checkpoint_every(&self) -> usize {
            2
        }
        fn tensor_files(&self) -> &'static [&'static str] {
            &[]
        }
    }

    /// What `check` says of a folder that `make` filled, and the hint; paths below it as `RUN/…`.
    fn said(resume: bool, make: impl FnOnce(&Path)) -> Result<bool, (ErrorKind, String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        fs_err::create_dir(&run).unwrap();
        make(&run);
        let short = |text: &str| text.replace(run.to_str().unwrap(), "RUN");
        let config = Trial { folder: run.clone(), rate: 0.5 };
        let before = listed(&run);
        let said = check(&config, resume)
            .map_err(|error| (error.kind(), short(&error.to_string()), short(error.hint_text().unwrap_or_default())));
        assert_eq!(listed(&run), before, "nothing is touched");
        said
    }

    fn listed(folder: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> =
            fs_err::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn file(path: PathBuf, content: &str) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, content).unwrap();
    }

    #[test]
    fn a_run_begins_where_nothing_of_its_names_lies() {
        assert_eq!(said(false, |_| {}), Ok(false));
        assert_eq!(said(true, |_| {}), Ok(false), "--resume begins where nothing is");
        assert_eq!(said(true, |run| fs_err::remove_dir(run).unwrap()), Ok(false));
        let others = |run: &Path| {
            file(run.join("notes.txt"), "mine");
            file(run.join("checkpoints/.step-2.partial/x"), "left by a kill");
            fs_err::create_dir(run.join("best")).unwrap();
        };
        assert_eq!(said(false, others), Ok(false));
        for (name, shown) in [
            ("best/notes.txt", "best/"),
            ("final/model.safetensors", "final/"),
            ("checkpoints/step-2/progress.json", "checkpoints/"),
            ("metrics.jsonl", "metrics.jsonl"),
        ] {
            for (resume, way) in [(false, "another --save-folder"), (true, "config.toml back")] {
                let (kind, message, hint) = said(resume, |run| file(run.join(name), "x")).unwrap_err();
                assert_eq!((kind, message), (ErrorKind::Usage, format!("RUN holds {shown} but no config.toml")));
                assert!(hint.contains(way), "{hint}");
            }
        }
    }

    #[test]
    fn links_are_followed_and_what_cannot_be_a_folder_is_named() {
        use std::os::unix::fs::symlink;
        let linked = |run: &Path| {
            fs_err::create_dir(run.with_file_name("disk")).unwrap();
            symlink(run.with_file_name("disk"), run.join("final")).unwrap();
        };
        assert_eq!(said(false, linked), Ok(false));
        let (kind, message, _) = said(false, |run| symlink("nowhere", run.join("final")).unwrap()).unwrap_err();
        let wanted = "save folder: RUN/final is a link to nowhere, which does not exist";
        assert_eq!((kind, message.as_str()), (ErrorKind::Data, wanted));
        let dangling = |run: &Path| {
            fs_err::remove_dir(run).unwrap();
            symlink("nowhere", run).unwrap();
        };
        assert_eq!(said(false, dangling).unwrap_err().1, "save folder: RUN is a link to nowhere, which does not exist");
        let message = said(true, |run| file(run.join("checkpoints"), "x")).unwrap_err().1;
        assert_eq!(message, "save folder: RUN/checkpoints is a file, wanted a folder");
    }

    #[test]
    fn a_run_goes_on_with_all_its_parts() {
        let part = |run: &Path| {
            file(run.join(CONFIG), "rate = 0.5");
            fs_err::create_dir(run.join("checkpoints")).unwrap();
        };
        assert_eq!(said(true, part), Ok(true), "killed before its first checkpoint");
        assert_eq!(said(false, part).unwrap_err().1, "RUN holds another run");
        let refused = |make: &dyn Fn(&Path)| {
            let made = |run: &Path| {
                part(run);
                make(run);
            };
            said(true, made).unwrap_err().1
        };
        assert_eq!(refused(&|run| file(run.join(CONFIG), "rate = 1")), "--resume: rate differ(s) from RUN/config.toml");
        assert!(refused(&|run| file(run.join(CONFIG), "rate = x")).starts_with("RUN/config.toml: "));
        assert_eq!(
            refused(&|run| fs_err::remove_dir(run.join("checkpoints")).unwrap()),
            "--resume: RUN holds a config.toml but no checkpoints/"
        );
        assert_eq!(
            refused(&|run| file(run.join("final/config.json"), "{}")),
            "--resume: RUN holds a config.toml and final/ but no checkpoint"
        );
        // A checkpoint is written after two steps at the latest.
        let steps = |count: usize| -> String { (1..=count).map(|step| format!("{{\"step\":{step}}}\n")).collect() };
        assert_eq!(
            refused(&|run| file(run.join("metrics.jsonl"), &steps(3))),
            "--resume: RUN holds a config.toml and a metrics.jsonl of 3 steps but no checkpoint"
        );
        let killed = |run: &Path| {
            part(run);
            file(run.join("metrics.jsonl"), &steps(2));
        };
        assert_eq!(said(true, killed), Ok(true));
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct At {
        step: usize,
    }

    #[test]
    fn the_newest_whole_checkpoint_is_taken_and_damaged_ones_step_aside() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        let config = Trial { folder: run.to_owned(), rate: 0.5 };
        file(run.join(CONFIG), "rate = 0.5");
        for step in [2, 4, 6] {
            checkpoints::write(&checkpoints::folder(run, step), |partial| {
                file(partial.join("progress.json"), &format!("{{\"step\": {step}}}"));
                Ok(())
            })
            .unwrap();
        }
        let point = || resume_point::<_, At>(&config, true, &Silent);
        assert_eq!(point().unwrap().unwrap().progress, At { step: 6 });
        for step in [4, 6] {
            file(checkpoints::folder(run, step).join("progress.json"), "{\"step\": 7}");
        }
        let older = point().unwrap().unwrap();
        assert_eq!((older.step, older.folder.clone()), (2, checkpoints::folder(run, 2)));
        older.set_damaged_aside().unwrap();
        assert_eq!(checkpoints::list(run).unwrap().len(), 1);
        assert!(run.join("checkpoints/step-6.damaged/progress.json").is_file());
        fs_err::remove_file(run.join("checkpoints/step-2/progress.json")).unwrap();
        let error = point().unwrap_err().to_string();
        assert!(error.starts_with("--resume: no checkpoint is whole: "), "{error}");
        assert!(error.ends_with("step-2/progress.json is missing"), "{error}");
    }
}
