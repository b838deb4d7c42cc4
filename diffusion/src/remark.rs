//! What is worth telling about a model's files and stops nothing.

use reward::event::{Event, Observer};

/// A sentence about how a model's files were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// A choice that the user may want to know of.
    Note(String),
    /// Something that may be wrong with the files.
    Warning(String),
}

impl Remark {
    /// Tells it.
    pub fn tell(&self, observer: &dyn Observer) {
        observer.event(&match self {
            Self::Note(text) => Event::Note(text),
            Self::Warning(text) => Event::Warning(text),
        });
    }
}
