//! What a run does with images that do not train: the rewards' units, held-out evaluations, going back to the best.

use std::{collections::BTreeMap, path::Path, sync::atomic::Ordering};

use reward::{
    event::Event,
    files::replace_file,
    run::{Ended, checksums, order::image_seed},
};
use serde_json::json;

use super::{Run, scene};
use crate::{
    Error, Result,
    finetune::{
        checkpoint,
        config::RewardScale,
        grid,
        held_out::{self, HeldOut},
        reward_scale, samples,
    },
    objective::Scale,
};

impl Run<'_> {
    /// Reports progress, and ends what is under way when the user asks; only before the first step, where nothing is lost.
    pub(super) fn watched(&self, phase: &'static str) -> impl Fn(usize, usize) -> Result<()> {
        let (observer, stop) = (self.observer, self.stop);
        move |done, total| {
            observer.event(&Event::Progress { phase, done, total });
            if stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
        }
    }

    /// Sets the unit of every reward: what an earlier part of the run found, or else from images of the base model.
    pub(super) fn scale_rewards(&mut self, folder: &Path) -> Result<()> {
        if !self.config.rewarded() || self.config.reward_scale == RewardScale::Raw {
            return Ok(());
        }
        let scales = match self.progress.step {
            1.. => self.progress.own.scales.clone(),
            0 => {
                let images = HeldOut::new(
                    &self.parts.prompts,
                    self.config.scale_images,
                    image_seed(self.config.seed, "scale", 0),
                    self.parts.models.latents,
                    self.micro_batches.size(),
                );
                let progress = self.watched("images for the rewards' scale");
                let snapshot = self.policy.as_base(|base| {
                    images.snapshot(self.world, base, &self.objective, &self.parts.embeddings, &progress)
                })?;
                let mut scales = BTreeMap::new();
                for weighted in &self.parts.rewards {
                    // A reward that is only watched needs no unit, so that it may be the same for all.
                    let scale = match weighted.weight {
                        0.0 => Scale::RAW,
                        _ => reward_scale::of(&weighted.label, snapshot.measure(&weighted.label))?,
                    };
                    scales.insert(weighted.label.clone(), scale);
                }
                scales
            }
        };
        if self.world.leads() {
            reward_scale::write(folder, &scales)?;
        }
        for (scale, weighted) in self.objective.scales.iter_mut().zip(&self.parts.rewards) {
            *scale = *scales.get(&weighted.label).ok_or_else(|| {
                Error::data(format!("{}: no scale of reward `{}`", reward_scale::FILE, weighted.label))
            })?;
        }
        self.progress.own.scales = scales;
        Ok(())
    }

    /// Compares held-out images with the base model's, writes the figures and a picture, and keeps the best. True where the
    /// stop rule holds.
    pub(super) fn evaluate(&mut self) -> Result<bool> {
        let Some(folder) = self.folder else { return Ok(false) };
        let step = self.progress.step;
        let rows = self.pictures.held_out().to_vec();
        if !rows.is_empty() {
            let seeds = (0..rows.len()).map(|index| image_seed(self.config.seed, "held-out", index)).collect();
            let (config, parts, pictures) = (self.config, self.parts, &self.pictures);
            let scene = scene(config, parts, &self.policy, &self.objective, pictures, &self.micro_batches, rows, seeds);
            let watched = self.update.with_means(|| self.method.watched(&scene))?;
            if !watched.is_empty() {
                let mut line = json!({"step": step});
                let mut told = Vec::new();
                for (name, value) in watched {
                    line[name] = json!(value);
                    told.push(format!("{} {value:.5}", name.replace("held_out_", "held-out ").replace('_', " ")));
                }
                self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.add(&line))?;
                self.observer.event(&Event::Note(&format!("step {step}: {}", told.join(", "))));
            }
        }
        let Some((held_out, base)) = &self.held_out else { return Ok(false) };
        let (policy, objective, parts, observer) = (&self.policy, &self.objective, self.parts, self.observer);
        let tuned = self.update.with_means(|| {
            held_out.snapshot(self.world, policy, objective, &parts.embeddings, &|done, total| {
                observer.event(&Event::Progress { phase: "held-out images", done, total });
                Ok(())
            })
        })?;
        let comparison = held_out.compare(&tuned, base, &parts.rewards);
        let mut line = comparison.line.clone();
        line.insert("step".to_owned(), json!(step));
        if let Some(norm) = held_out::lora_norm(&parts.models.unet.parameters) {
            line.insert("lora_norm".to_owned(), json!(norm));
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.add(&json!(line))?;
            let (png, size) = grid::png(&base.pixels, &tuned.pixels)?;
            fs_err::create_dir_all(folder.join("samples"))?;
            let path = folder.join(format!("samples/step-{step:06}.png"));
            replace_file(&path, |partial| Ok(fs_err::write(partial, &png)?))?;
            metrics.image(step, "base above, tuned below", &png, size)?;
            samples::write(&path.with_extension(""), self.config, parts, held_out, &tuned.pixels)?;
        }
        let composite = comparison.composite;
        let best = composite.is_finite() && self.progress.best.is_none_or(|best| composite > best);
        let text = format!(
            "step {step}: held-out reward {:.4}, gain {:+.3} [{:+.3}, {:+.3}], ε-drift {:.2e}{}{}",
            comparison.line["held_out_reward"].as_f64().unwrap_or(f64::NAN),
            comparison.gain,
            comparison.interval[0],
            comparison.interval[1],
            comparison.line["epsilon_drift"].as_f64().unwrap_or(f64::NAN),
            if comparison.fallen.is_empty() {
                String::new()
            } else {
                format!(", fell: {}", comparison.fallen.join(", "))
            },
            if best { ", best so far" } else { "" },
        );
        self.observer.event(&Event::Note(&text));
        if best {
            self.progress.best = Some(composite);
            let (models, update, progress) = (&parts.models, &self.update, &self.progress);
            let method = self.method.as_ref();
            if self.world.leads() {
                update.with_means(|| checkpoint::write(&folder.join("best"), models, update, method, progress))?;
            }
        }
        let rose = comparison.interval[0] > 0.0;
        let hacked = self.config.stop_after_falls.is_some_and(|falls| comparison.fallen.len() >= falls);
        Ok(rose && hacked && step > 0)
    }

    /// What the stop rule does: the best weights are the run's result.
    pub(super) fn roll_back(&mut self) -> Result<Ended> {
        let Some(folder) = self.folder else { return self.finish() };
        let best = folder.join("best");
        // Written by rank 0, read by all.
        self.world.barrier()?;
        let text = format!(
            "step {}: the reward rises while other measures fall: stopped, back to {}",
            self.progress.step,
            best.display()
        );
        self.observer.event(&Event::Warning(&text));
        checksums::verify(&best)?;
        checkpoint::weights(&best.join(checkpoint::TRAINED), &self.update)?;
        self.update.ema = None;
        self.finish()
    }
}
