//! The look at all images before a model is loaded: that each is there and begins like one.

use std::{
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rayon::prelude::*;

use crate::{
    Error, Result,
    data::{
        image::probe,
        preflight::{OnBadImage, check_header},
        source::ImageSource,
    },
    error::interrupted,
    event::{Event, Observer},
};

/// How many images a message names.
const NAMED: usize = 3;
/// From how many images on the look is worth a bar.
const MANY: usize = 2000;

/// What tells an image from another that takes its place: of a file its size and time of change, of an embedded one its
/// content. Nothing for an image that cannot be read.
pub type Stamp = Option<[u64; 3]>;

/// Looks at every image. Those that cannot be read are an error, or a warning where they are to be skipped.
///
/// # Errors
/// An image cannot be read and none is skipped, with the count and the first few; or `stop` was set.
pub fn look(
    images: &[ImageSource],
    max_pixels: u64,
    on_bad_image: OnBadImage,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Vec<Stamp>> {
    let done = AtomicUsize::new(0);
    let each = |image: &ImageSource| -> Result<Stamp> {
        interrupted(stop)?;
        let stamp = check_header(image, |head| probe(head, &image.label())?.check_pixels(&image.label(), max_pixels))
            .and_then(|()| stamp(image));
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if images.len() >= MANY {
            observer.event(&Event::Progress { phase: "looking at images", done, total: images.len() });
        }
        stamp.map(Some)
    };
    let looked: Vec<Result<Stamp>> = images.par_iter().map(each).collect();
    interrupted(stop)?;
    let bad: Vec<String> = looked.iter().filter_map(|looked| Some(looked.as_ref().err()?.to_string())).collect();
    if !bad.is_empty() {
        let (count, more) = (bad.len(), if bad.len() > NAMED { "; …" } else { "" });
        let what = format!(
            "{count} of {} image(s) cannot be read: {}{more}",
            images.len(),
            bad[..count.min(NAMED)].join("; ")
        );
        if on_bad_image == OnBadImage::Stop {
            const SKIP: &str = "--on-bad-image skip leaves such images without a score";
            let own = looked.iter().find_map(|looked| looked.as_ref().err()?.hint_text());
            let missing = bad[0].ends_with("does not exist");
            let missing = missing.then_some("relative paths in a table start at its folder, or at --image-root");
            let hint = own.or(missing).map_or_else(|| SKIP.to_owned(), |hint| format!("{hint}; {SKIP}"));
            return Err(Error::data(what).hint(hint));
        }
        observer.event(&Event::Warning(&format!("{what}: without a score")));
    }
    Ok(looked.into_iter().map(|looked| looked.ok().flatten()).collect())
}

fn stamp(image: &ImageSource) -> Result<[u64; 3]> {
    Ok(match image {
        ImageSource::File(path) => {
            let found = fs_err::metadata(path)?;
            [found.size(), found.mtime() as u64, found.mtime_nsec() as u64]
        }
        ImageSource::Embedded(_) => {
            let hash = *image.identity().as_bytes();
            [0, 8, 16].map(|start| hash[start..start + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn event(&self, event: &Event) {
            if let Event::Warning(text) = event {
                self.0.lock().unwrap().push((*text).to_owned());
            }
        }
    }

    #[test]
    fn bad_images_are_counted_and_named_before_anything_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        image::RgbImage::new(3, 2).save(at("a.png")).unwrap();
        fs_err::write(at("b.png"), "no picture, but long enough to be looked at").unwrap();
        let images = |names: &[&str]| names.iter().map(|name| ImageSource::File(at(name))).collect::<Vec<_>>();
        let heard = Heard(Mutex::default());
        let look = |names: &[&str], on_bad_image| {
            look(&images(names), u64::MAX, on_bad_image, &heard, &AtomicBool::new(false))
        };
        let stamps = look(&["a.png", "a.png"], OnBadImage::Stop).unwrap();
        assert!(stamps[0].is_some() && stamps[0] == stamps[1]);
        let names = ["a.png", "n1.png", "b.png", "n2.png", "n3.png"];
        let error = look(&names, OnBadImage::Stop).unwrap_err().to_string();
        let error = error.replace(&format!("{}/", folder.path().display()), "");
        assert!(error.starts_with("4 of 5 image(s) cannot be read: n1.png does not exist; b.png"), "{error}");
        assert!(error.ends_with("; n2.png does not exist; …"), "{error}");
        let stamps = look(&names, OnBadImage::Skip).unwrap();
        assert_eq!(stamps.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, false, false]);
        assert!(heard.0.lock().unwrap()[0].starts_with("4 of 5 image(s) cannot be read"));
    }
}
