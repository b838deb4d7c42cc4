//! The whole way on the toy world, and what came of it. On it are a CLIP, a reward from what users liked, a text-to-image model,
//! and that model tuned against the reward.

use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::Result;
use diffusion::{
    export::untrained,
    finetune::{FinetuneConfig, finetune},
    generate::{self, GenerateConfig, generate},
    lora::LoraSpec,
};
use reward::{
    Error, ErrorKind,
    rewards::spec::RewardSpec,
    run::Ended,
    train::{config::TrainConfig, fit::train},
    world::World,
};
use serde::de::DeserializeOwned;

use super::{truth, write::Written};
use crate::{
    cli::{DemoArgs, EvaluateArgs, TRIPLETS, ValidateArgs},
    commands,
    progress::Progress,
    signals,
};

const STAGES: usize = 6;

/// Runs every stage in the folder of `arguments`, whose folder `data` holds the data.
///
/// # Errors
/// Those of the stages.
pub(super) fn run(arguments: &DemoArgs, data: &Written, progress: &Progress) -> Result<ExitCode> {
    Demo { arguments, data, progress, stop: signals::listen()?, start: Instant::now() }.run()
}

/// Prints the truth about the image set `images` beside `base`.
///
/// # Errors
/// Those of [`truth::table`].
pub(super) fn truth(images: &Path, base: &Path) -> Result<ExitCode> {
    commands::print(truth::table(images, base)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

struct Demo<'a> {
    arguments: &'a DemoArgs,
    data: &'a Written,
    progress: &'a Progress,
    stop: Arc<AtomicBool>,
    start: Instant,
}

impl Demo<'_> {
    fn run(&self) -> Result<ExitCode> {
        self.stage(1, "a CLIP learns from captions what words look like");
        let clip = include_str!("../../configs/demo/clip.toml");
        let clip = self.reward_trainer("clip", clip, &["captions"], None)?.join("final");
        self.stage(2, "it becomes a reward: what users liked, then which of two pictures they liked");
        self.stage(3, "at the same time, a text-to-image model is trained from scratch");
        let (reward, model) = side_by_side(&self.stop, || self.reward(&clip), || self.text_to_image(&clip))?;
        self.validate(&reward)?;
        self.stage(4, "its images of shapes in colours that none of its pictures showed them in");
        let base = self.images("base", &model, None)?;
        self.stage(
            5,
            "it learns to please the reward, and the CLIP of the captions, which sees that it shows what was asked for",
        );
        let run = self.tune(&model, &[("social-reward", &reward), ("clip-score", &clip)])?;
        // In the run's folder, where the report looks for its curves.
        let tuned = self.images("finetune/tuned", &model, Some(&run.join("lora")))?;
        self.stage(6, "what came of it");
        self.judge(&tuned, &base, &reward)
    }

    /// The reward model, from the CLIP of the captions.
    fn reward(&self, clip: &Path) -> Result<PathBuf> {
        let liked = include_str!("../../configs/demo/liked.toml");
        let liked = self.reward_trainer("liked", liked, &["captions", "train"], Some(clip))?.join("final");
        let reward = include_str!("../../configs/demo/reward.toml");
        Ok(self.reward_trainer("reward", reward, &["train"], Some(&liked))?.join("best"))
    }

    fn stage(&self, number: usize, text: &str) {
        let seconds = self.start.elapsed().as_secs();
        self.progress.line(&format!(
            "\n[{number}/{STAGES}, after {}:{:02}] {text}",
            seconds.div_euclid(60),
            seconds % 60
        ));
    }

    /// A folder of the demo, without what an earlier demo left there.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let folder = self.arguments.output.join(name);
        if folder.exists() {
            fs_err::remove_dir_all(&folder)?;
        }
        Ok(folder)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.arguments.output.join("data").join(name)
    }

    fn reward_trainer(&self, name: &str, config: &str, files: &[&str], from: Option<&Path>) -> Result<PathBuf> {
        let folder = self.fresh(name)?;
        let config = TrainConfig {
            training_file: files
                .iter()
                .map(|file| self.data(&format!("{file}.parquet")).display().to_string())
                .collect(),
            validation_file: from.map(|_| self.data.validation.file.display().to_string()).into_iter().collect(),
            checkout_path: from.map(|path| path.display().to_string()),
            save_folder: Some(folder.clone()),
            seed: self.arguments.seed,
            ..read(config)?
        };
        match train(&config, false, &World::alone(), self.progress, &self.stop)? {
            Ended::Interrupted { .. } => Err(Error::interrupted().into()),
            _ => Ok(folder),
        }
    }

    fn validate(&self, reward: &Path) -> Result<()> {
        let ceiling = self.data.test.ceiling;
        self.progress.line(&format!(
            "requests that no preference in training was about; no scorer can expect more than {ceiling:.4}:"
        ));
        commands::validate::run(&ValidateArgs {
            validation_file: vec![self.data.test.file.display().to_string()],
            checkout_path: Some(reward.display().to_string()),
            slice_by: Some("shape".to_owned()),
            ..ValidateArgs::default()
        })?;
        Ok(())
    }

    /// The folder of the trained model.
    fn text_to_image(&self, clip: &Path) -> Result<PathBuf> {
        let start = self.fresh("untrained")?;
        untrained("sd-toy", self.arguments.seed, clip, &start)?;
        self.finetune(FinetuneConfig {
            model: Some(start.display().to_string()),
            images: Some(self.data("captions.csv")),
            output: Some(self.fresh("text-to-image")?),
            seed: self.arguments.seed,
            ..read(include_str!("../../configs/demo/text-to-image.toml"))?
        })
    }

    /// Trains for as many steps as go with the size of the data.
    fn finetune(&self, mut config: FinetuneConfig) -> Result<PathBuf> {
        for steps in [&mut config.train_steps, &mut config.vae_steps] {
            *steps = (*steps * self.arguments.triplets).div_ceil(TRIPLETS);
        }
        match finetune(&config, false, &World::alone(), self.progress, &self.stop)? {
            Ended::Finished(path) => Ok(path),
            Ended::Interrupted { .. } => Err(Error::interrupted().into()),
        }
    }

    /// The folder of the run.
    fn tune(&self, model: &Path, rewards: &[(&str, &Path)]) -> Result<PathBuf> {
        let folder = self.fresh("finetune")?;
        let rewards = rewards.iter().map(|(name, path)| format!("{name}={}", path.display()).parse::<RewardSpec>());
        self.finetune(FinetuneConfig {
            model: Some(model.display().to_string()),
            reward: rewards.collect::<std::result::Result<_, _>>()?,
            prompts: Some(self.data("prompts.txt")),
            held_out_prompts: Some(self.data("held-out.txt")),
            output: Some(folder.clone()),
            seed: self.arguments.seed,
            ..read(include_str!("../../configs/demo/finetune.toml"))?
        })?;
        Ok(folder)
    }

    /// The folder of the images.
    fn images(&self, name: &str, model: &Path, lora: Option<&Path>) -> Result<PathBuf> {
        let folder = self.fresh(name)?;
        let config = GenerateConfig {
            model: Some(model.display().to_string()),
            prompts: Some(self.data("held-out.txt")),
            lora: lora.map(LoraSpec::new).into_iter().collect(),
            seed: self.arguments.seed,
            output: Some(folder.clone()),
            ..read(include_str!("../../configs/demo/images.toml"))?
        };
        match generate(&config, self.progress, &self.stop)? {
            generate::Ended::Finished { .. } | generate::Ended::Part { .. } => Ok(folder),
            generate::Ended::Interrupted { .. } => Err(Error::interrupted().into()),
        }
    }

    /// Prints what the reward thinks and what is true, and writes the report.
    fn judge(&self, tuned: &Path, base: &Path, reward: &Path) -> Result<ExitCode> {
        let report = self.arguments.output.join("report.html");
        let reward = reward.display();
        commands::evaluate::run(&EvaluateArgs {
            images: vec![tuned.to_owned()],
            baseline: Some(base.to_owned()),
            metrics: vec![format!("social-reward={reward}"), "saturation".to_owned(), "diversity".to_owned()],
            report: Some(report.clone()),
            ..EvaluateArgs::default()
        })?;
        commands::print(&format!("\n{}\n{}", truth::table(tuned, base)?, report.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs both at the same time: models as small as the demo's compute with one thread each. Where one fails, the other stops.
fn side_by_side<A: Send, B>(
    stop: &AtomicBool,
    one: impl FnOnce() -> Result<A> + Send,
    other: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    let stop_both = |_: &anyhow::Error| stop.store(true, Ordering::Relaxed);
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| one().inspect_err(stop_both));
        let other = other().inspect_err(stop_both);
        (one.join().unwrap_or_else(|panic| resume_unwind(panic)), other)
    });
    let stopped = |error: &anyhow::Error| {
        error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::Interrupted)
    };
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(error), Err(other)) if stopped(&error) => Err(other),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// A configuration of `configs/demo`.
fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
    Ok(toml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use diffusion::source::{Source, SourceOptions};

    use super::*;
    use crate::demo::world::Request;

    #[test]
    fn where_one_fails_the_other_stops_and_the_failure_is_told() {
        let works_until_stopped = |stop: &AtomicBool| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            Err(Error::interrupted().into())
        };
        let fails = || -> Result<()> { Err(Error::data("no space left").into()) };
        let stop = AtomicBool::new(false);
        let error = side_by_side(&stop, fails, || works_until_stopped(&stop)).unwrap_err();
        assert_eq!(error.to_string(), "no space left");
        let stop = AtomicBool::new(false);
        let error = side_by_side(&stop, || works_until_stopped(&stop), fails).unwrap_err();
        assert_eq!(error.to_string(), "no space left");
        let both = side_by_side(&AtomicBool::new(false), || Ok(1), || Ok(2)).unwrap();
        assert_eq!(both, (1, 2));
    }

    #[test]
    fn the_unet_reads_every_request_to_its_end() {
        let tokenizer = Source::open("random:sd-toy", SourceOptions::default()).unwrap().tokenizer().unwrap();
        for request in Request::all() {
            let encoded = tokenizer.encode(&request.to_string()).unwrap();
            assert!(!encoded.truncated && encoded.ids.len() == 10, "{request}: {encoded:?}");
        }
    }
}
