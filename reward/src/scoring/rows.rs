//! Scores of a table's rows, kept in parts on the way.

use std::{ops::Range, sync::atomic::AtomicBool};

use super::{
    first_look::Stamp,
    parts::{Found, Parts},
};
use crate::{
    Error, Result,
    clip::tokenizer::Tokens,
    data::{manifest::Manifest, preflight::OnBadImage, source::ImageSource},
    engine::{EmbedOptions, Engine, embed_images, embed_needed_prompts},
    event::{Event, Observer, Silent},
    statistics::table::Table,
    world::shard::Shard,
};

/// A table to score, looked at and tokenized.
pub struct Rows<'a> {
    manifest: &'a Manifest,
    tokens: &'a [Tokens],
    stamps: &'a [Stamp],
    /// The rows by their image, and where in them each image begins.
    by_image: Vec<u32>,
    begins: Vec<usize>,
}

impl<'a> Rows<'a> {
    /// `tokens`: of every prompt; `stamps`: of every image.
    pub fn new(manifest: &'a Manifest, tokens: &'a [Tokens], stamps: &'a [Stamp]) -> Self {
        let mut by_image: Vec<u32> = (0..manifest.rows.len() as u32).collect();
        by_image.sort_by_key(|row| manifest.rows[*row as usize].image);
        let begin = |image| by_image.partition_point(|row| (manifest.rows[*row as usize].image as usize) < image);
        let begins = (0..=manifest.images.len()).map(begin).collect();
        Self { manifest, tokens, stamps, by_image, begins }
    }

    /// The score of every row; none where the image could not be read. `load` gives the model, if anything is left to score. Of
    /// several processes each scores its `shard`; nothing comes back where the others have not scored theirs.
    ///
    /// With `parts`, what a run before this one has scored is taken from them. What this one scores is added now and then, and
    /// when it fails or is stopped. At one batch size scores are the same to the bit, however often a run was stopped.
    ///
    /// # Errors
    /// A part cannot be read or written, or an image cannot be read (unless bad images are skipped). A score is not finite, the
    /// engine fails, or `stop` was set.
    pub fn score<'e>(
        &self,
        load: impl FnOnce() -> Result<Box<dyn Engine + 'e>>,
        shard: Shard,
        options: &EmbedOptions,
        mut parts: Option<&mut Parts>,
        observer: &dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Option<Vec<Option<f32>>>> {
        let images = self.manifest.images.len();
        let found = parts.as_ref().map_or(Ok(Vec::new()), |parts| self.found(parts, options, observer))?;
        let mut scores = vec![None; self.manifest.rows.len()];
        self.take(&found, &mut scores);
        let own = shard.of_batches(images, options.batch_size);
        let within = |gap: Range<usize>| gap.start.max(own.start)..gap.end.min(own.end);
        let left: Vec<Range<usize>> =
            gaps(&found, images).into_iter().map(within).filter(|range| !range.is_empty()).collect();
        if left.is_empty() {
            return Ok(gaps(&found, images).is_empty().then_some(scores));
        }
        let mut needed = vec![false; self.manifest.prompts.len()];
        for row in left.iter().flat_map(|range| self.of(range.clone())) {
            needed[self.manifest.rows[*row as usize].prompt as usize] = true;
        }
        let engine = load()?;
        let mut prompts = Table::new(0, self.manifest.prompts.len(), engine.config().embed_dim);
        let is_needed = |_, pass: &[u32]| pass.iter().any(|prompt| needed[*prompt as usize]);
        embed_needed_prompts(&*engine, self.tokens, &is_needed, options, observer, stop, |indexes, embeddings| {
            prompts.set_prompts(indexes, &embeddings);
        })?;
        for range in left {
            // Images that are scored, but not in a part yet.
            let mut pending = range.start..range.start;
            let sources: Vec<&ImageSource> = self.manifest.images[range.clone()].iter().collect();
            let mut done = embed_images(&*engine, &sources, options, observer, stop, |indexes, embeddings| {
                for (index, embedding) in indexes.iter().zip(&embeddings) {
                    let image = range.start + *index as usize;
                    for row in self.of(image..image + 1) {
                        let score = prompts.cosine(self.manifest.rows[*row as usize].prompt, embedding);
                        if !score.is_finite() {
                            return Err(not_finite(score, &self.manifest.images[image]));
                        }
                        scores[*row as usize] = Some(score);
                    }
                }
                let pass = indexes.last().map_or(0, |last| (*last as usize).div_euclid(options.batch_size) + 1);
                pending.end = range.end.min(range.start + pass * options.batch_size);
                match parts.as_deref_mut().filter(|parts| parts.due()) {
                    Some(parts) => self.keep(parts, &mut pending, &scores),
                    None => Ok(()),
                }
            })
            .map(drop);
            if done.is_ok() {
                pending.end = range.end;
            }
            if let Some(parts) = parts.as_deref_mut() {
                let due = done.is_err() || shard.count > 1 || parts.due();
                let kept = if due { self.keep(parts, &mut pending, &scores) } else { Ok(()) };
                if done.is_err() && kept.is_ok() && !parts.taken() {
                    self.say_kept(parts, &scores, observer);
                }
                done = done.and(kept);
            }
            done?;
        }
        if shard.count == 1 {
            return Ok(Some(scores));
        }
        // The last to end has the parts of all.
        let found = parts.map_or(Ok(Vec::new()), |parts| self.found(parts, options, &Silent))?;
        self.take(&found, &mut scores);
        Ok(gaps(&found, images).is_empty().then_some(scores))
    }

    /// Fills in the scores of parts.
    fn take(&self, found: &Found, scores: &mut [Option<f32>]) {
        for (range, part) in found {
            for (row, score) in self.of(range.clone()).iter().zip(part) {
                scores[*row as usize] = Some(*score).filter(|score| !score.is_nan());
            }
        }
    }

    /// The rows that show these images.
    fn of(&self, images: Range<usize>) -> &[u32] {
        &self.by_image[self.begins[images.start]..self.begins[images.end]]
    }

    /// What the scores of these images' rows depend on beside the model, and how many rows they are.
    fn hash(&self, images: Range<usize>) -> Option<(String, usize)> {
        if images.start >= images.end || images.end > self.manifest.images.len() {
            return None;
        }
        let mut hash = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        for image in images.clone() {
            self.stamps[image].iter().flatten().for_each(|number| add(&number.to_le_bytes()));
            for row in self.of(image..image + 1) {
                let row = &self.manifest.rows[*row as usize];
                add(row.path.as_bytes());
                add(self.manifest.prompts[row.prompt as usize].as_bytes());
            }
            add(b"");
        }
        Some((hash.finalize().to_hex().to_string(), self.of(images).len()))
    }

    fn found(&self, parts: &Parts, options: &EmbedOptions, observer: &dyn Observer) -> Result<Found> {
        let (mut found, others) = parts.read(|images| self.hash(images))?;
        // A run that skipped bad images has left rows without a score, one that does not must find them.
        let stops = options.on_bad_image == OnBadImage::Stop;
        found.retain(|(_, scores)| !stops || scores.iter().all(|score| !score.is_nan()));
        let folder = parts.folder().display();
        if parts.taken() {
            let text = format!(
                "another process keeps its parts in {folder}: this one starts from the beginning and keeps none"
            );
            observer.event(&Event::Warning(&text));
        }
        if others > 0 {
            let text = format!(
                "{others} part(s) in {folder} are of another model, other settings, other rows or changed images, and are not used"
            );
            observer.event(&Event::Warning(&text));
        }
        let rows: usize = found.iter().map(|(_, scores)| scores.len()).sum();
        if rows > 0 {
            observer.event(&Event::Note(&format!("{rows} of {} scores are in {folder} already", self.by_image.len())));
        }
        Ok(found)
    }

    fn keep(&self, parts: &mut Parts, pending: &mut Range<usize>, scores: &[Option<f32>]) -> Result<()> {
        let images = pending.clone();
        if let Some((hash, _)) = self.hash(images.clone()) {
            let part: Vec<f32> =
                self.of(images.clone()).iter().map(|row| scores[*row as usize].unwrap_or(f32::NAN)).collect();
            parts.add(images, hash, &part)?;
        }
        pending.start = pending.end;
        Ok(())
    }

    fn say_kept(&self, parts: &Parts, scores: &[Option<f32>], observer: &dyn Observer) {
        let kept = scores.iter().flatten().count();
        if kept > 0 {
            let (all, folder) = (scores.len(), parts.folder().display());
            let text = format!("{kept} of {all} scores are kept in {folder}: the same command goes on from them");
            observer.event(&Event::Note(&text));
        }
    }
}

fn not_finite(score: f32, image: &ImageSource) -> Error {
    Error::data(format!("the score of {} is {score}: wanted a finite one", image.label()))
        .hint("the model's weights may hold NaN, as after a training run that diverged")
}

/// The ranges of `0..images` that are not in `found`, which is sorted.
fn gaps(found: &Found, images: usize) -> Vec<Range<usize>> {
    let ends = std::iter::once(0).chain(found.iter().map(|(range, _)| range.end));
    let starts = found.iter().map(|(range, _)| range.start).chain([images]);
    ends.zip(starts).map(|(end, start)| end..start).filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        panic::{AssertUnwindSafe, catch_unwind},
        path::Path,
        sync::atomic::Ordering,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        clip::{config::ClipConfig, tokenizer::Tokenizer},
        data::image::DecodeOptions,
        event::Silent,
        scoring::{first_look::look, parts::Model},
    };

    /// How a run ends before its time, in its n-th pass over images.
    #[derive(Debug, Clone, Copy)]
    enum End {
        /// Ctrl-C or SIGTERM.
        Stop(usize),
        /// Nothing more is done, as after `kill -9`.
        Kill(usize),
    }

    /// Embeds by the first pixels and ids, and counts what it is given.
    struct Fake<'a> {
        config: ClipConfig,
        end: Option<End>,
        stop: &'a AtomicBool,
        passes: &'a Cell<usize>,
        images: &'a Cell<usize>,
    }

    impl Engine for Fake<'_> {
        fn config(&self) -> &ClipConfig {
            &self.config
        }
        fn label(&self) -> &str {
            "fake"
        }
        fn images(&self, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
            self.passes.set(self.passes.get() + 1);
            match self.end {
                Some(End::Stop(at)) if at == self.passes.get() => self.stop.store(true, Ordering::Relaxed),
                Some(End::Kill(at)) if at == self.passes.get() => panic!("killed"),
                _ => {}
            }
            self.images.set(self.images.get() + pictures.len());
            Ok(pictures
                .iter()
                .map(|picture| picture[..4].iter().map(|byte| f32::from(*byte) / 255.0).collect())
                .collect())
        }
        fn texts(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
            Ok(prompts
                .iter()
                .map(|tokens| (1..5).map(|at| 1.0 / tokens.ids[at.min(tokens.ids.len() - 1)] as f32).collect())
                .collect())
        }
    }

    /// A table of `rows` (prompt, image) over pictures of one colour each.
    fn manifest(folder: &Path, rows: &[(usize, usize)]) -> Manifest {
        let mut table = "prompt,path\n".to_owned();
        for (prompt, image) in rows {
            let path = folder.join(format!("{image}.png"));
            if !path.exists() {
                image::RgbImage::from_pixel(2, 2, image::Rgb([*image as u8 * 9 + 1, 7, 200])).save(&path).unwrap();
            }
            table += &format!("prompt {prompt},{image}.png\n");
        }
        fs_err::write(folder.join("m.csv"), table).unwrap();
        Manifest::read(&folder.join("m.csv")).unwrap()
    }

    struct Ended {
        scores: Option<Vec<Option<f32>>>,
        images: usize,
    }

    fn run(folder: &Path, manifest: &Manifest, batch_size: usize, end: Option<End>, parts: Option<&str>) -> Ended {
        let options =
            EmbedOptions { batch_size, workers: 0, decode: DecodeOptions::default(), on_bad_image: OnBadImage::Stop };
        let (stop, passes, images) = (AtomicBool::new(false), Cell::new(0), Cell::new(0));
        let stamps = look(&manifest.images, u64::MAX, OnBadImage::Stop, &Silent, &stop).unwrap();
        let tokens: Vec<Tokens> =
            manifest.prompts.iter().map(|prompt| Tokenizer::openai().encode(prompt, 77)).collect();
        let rows = Rows::new(manifest, &tokens, &stamps);
        let mut parts = parts.map(|settings| {
            Parts::of(&folder.join("s.csv"), Model { files: Vec::new(), settings }, false).unwrap().at_once()
        });
        let config = ClipConfig { embed_dim: 4, ..ClipConfig::preset("tiny").unwrap() };
        let fake = Fake { config, end, stop: &stop, passes: &passes, images: &images };
        let scored = catch_unwind(AssertUnwindSafe(|| {
            let load = || Ok(Box::new(fake) as Box<dyn Engine + '_>);
            rows.score(load, Shard::WHOLE, &options, parts.as_mut(), &Silent, &stop)
        }));
        let scores = scored.ok().and_then(Result::ok).flatten();
        if let (Some(_), Some(parts)) = (&scores, parts) {
            parts.remove();
        }
        Ended { scores, images: images.get() }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the ends before, no image is scored twice but those of the pass that was under way. The scores are those of
        /// an undisturbed run to the bit.
        #[test]
        fn no_end_of_a_run_loses_a_finished_part(
            rows in prop::collection::vec((0_usize..5, 0_usize..12), 1..30),
            batch_size in 1_usize..5,
            ends in prop::collection::vec((any::<bool>(), 1_usize..6), 0..5),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let manifest = manifest(folder.path(), &rows);
            let whole = run(folder.path(), &manifest, batch_size, None, None).scores.unwrap();
            let mut images = 0;
            for (stopped, pass) in ends {
                let end = if stopped { End::Stop(pass) } else { End::Kill(pass) };
                let ended = run(folder.path(), &manifest, batch_size, Some(end), Some("model"));
                images += ended.images;
                if let Some(scores) = ended.scores {
                    // It was through before its end came; its parts are gone.
                    prop_assert_eq!(&scores, &whole);
                    prop_assert_eq!(images, manifest.images.len());
                    images = 0;
                }
            }
            let last = run(folder.path(), &manifest, batch_size, None, Some("model"));
            prop_assert_eq!(last.scores.unwrap(), whole);
            prop_assert_eq!(images + last.images, manifest.images.len());
            prop_assert!(!folder.path().join("s.csv.parts").exists());
        }
    }

    #[test]
    fn parts_of_another_question_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<_> = (0..8).map(|image| (image % 3, image)).collect();
        let all = manifest(folder.path(), &rows);
        let whole = run(folder.path(), &all, 2, None, None).scores.unwrap();
        let killed = |settings: &str| run(folder.path(), &all, 2, Some(End::Kill(4)), Some(settings)).images;
        assert_eq!(killed("model"), 6);
        // Another model: from the beginning.
        assert_eq!(killed("other"), 6);
        // One row less at the end and two more: what was scored before them stays.
        let longer = manifest(folder.path(), &[&rows[..7], &[(0, 8), (1, 9)]].concat());
        assert_eq!(run(folder.path(), &longer, 2, None, Some("other")).images, 3);

        let after_two_parts = |table: &Manifest, change: &dyn Fn()| {
            assert_eq!(run(folder.path(), &all, 2, Some(End::Kill(3)), Some("model")).images, 4);
            change();
            let ended = run(folder.path(), table, 2, None, Some("model"));
            assert_eq!(ended.scores.unwrap()[1..], whole[1..]);
            ended.images
        };
        assert_eq!(after_two_parts(&all, &|| {}), 4);
        let other_prompt = manifest(folder.path(), &[&[(4, 0)], &rows[1..]].concat());
        assert_eq!(after_two_parts(&other_prompt, &|| {}), 6);
        let damage = || {
            let part = folder.path().join("s.csv.parts/00000002-00000004.part");
            let mut bytes = fs_err::read(&part).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs_err::write(&part, bytes).unwrap();
        };
        assert_eq!(after_two_parts(&all, &damage), 6);
        let repaint = || image::RgbImage::new(2, 3).save(folder.path().join("0.png")).unwrap();
        assert_eq!(after_two_parts(&all, &repaint), 6);
    }
}
