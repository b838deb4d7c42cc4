//! Which activation a checkpoint has, who says so, and what a user is told of it.

use super::Checkpoint;
use crate::{
    clip::config::{Activation, ClipConfig},
    event::{Event, Observer},
};

/// Where the activation comes from, which no shape tells.
pub(super) enum Stated {
    /// A file, or whoever gave the architecture.
    By(String),
    /// Known without: a preset, or OpenAI's own archive.
    Known,
    /// A rule about shapes.
    Not,
}

impl Checkpoint {
    /// The activation that was asked for, or the one that is stated, or the rule's with a warning.
    pub(super) fn decide_activation(&mut self, model: &str, asked: Option<Activation>) {
        let ClipConfig { vision, text, .. } = &mut self.config;
        match (asked, &self.stated) {
            (Some(asked), stated) => {
                if let Stated::By(place) = stated
                    && [vision.activation, text.activation] != [asked; 2]
                {
                    let found = if vision.activation == asked { text.activation } else { vision.activation };
                    self.warnings.push(format!("--activation {asked} is used, though {place} says {found}"));
                }
                (vision.activation, text.activation) = (asked, asked);
            }
            (None, Stated::Not) => {
                let (taken, whose, other, others) = match vision.activation {
                    Activation::QuickGelu => ("quick-gelu", "OpenAI's", "gelu", "LAION's and DataComp's"),
                    Activation::Gelu => ("gelu", "LAION's ViT-H, g and G", "quick-gelu", "Apple's DFN and MetaCLIP"),
                };
                self.warnings.push(format!(
                    "{model} does not say which activation it has: {taken} is taken, as {whose} have it; for those that have \
                     {other} ({others}) say --activation {other}"
                ));
            }
            (None, _) => {}
        }
    }

    /// Says what was opened, and what a user should know of it.
    pub fn announce(&self, observer: &dyn Observer) {
        observer.event(&Event::Note(&self.config.to_string()));
        self.warnings.iter().for_each(|warning| observer.event(&Event::Warning(warning)));
    }
}
