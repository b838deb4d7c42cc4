//! A part of work that processes share without meeting: `--shard I/N`.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

/// Part `index`, from 0, of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    /// The number of this part, from 0.
    pub index: usize,
    /// The number of parts.
    pub count: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// This part of `things` things: parts differ in length by one at most, and follow each other.
    pub fn of(self, things: usize) -> Range<usize> {
        let bound = |index: usize| (things * index).div_ceil(self.count);
        bound(self.index)..bound(self.index + 1)
    }

    /// This part of `things` things that are done `at_once` at a time: it begins and ends where one process would.
    pub fn of_batches(self, things: usize, at_once: usize) -> Range<usize> {
        let batches = self.of(things.div_ceil(at_once));
        things.min(batches.start * at_once)..things.min(batches.end * at_once)
    }

    /// What `text` says: `I/N`, `auto/N` or `auto`. `auto/N` takes the number of this task of a Slurm array or of an indexed
    /// Kubernetes job. `auto` takes the number and N from a Slurm array.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is not a whole number"));
        let of = |name: &str| variable(name).filter(|value| !value.is_empty()).map(|value| number(&value)).transpose();
        let (index, count) = text.split_once('/').unwrap_or((text, ""));
        let (slurm, first) = (of("SLURM_ARRAY_TASK_ID")?, of("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0));
        let task = match slurm {
            Some(task) => Some(task.saturating_sub(first)),
            None => of("JOB_COMPLETION_INDEX")?,
        };
        let index = match index {
            "auto" => task.ok_or("neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set")?,
            index => number(index)?,
        };
        let count = match count {
            "" if text == "auto" => {
                of("SLURM_ARRAY_TASK_COUNT")?.ok_or("SLURM_ARRAY_TASK_COUNT is not set: want auto/N")?
            }
            count => number(count)?,
        };
        if index < count {
            return Ok(Self { index, count });
        }
        Err(format!("part {index} of {count}: parts go from 0 to their number less one"))
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, |name| std::env::var(name).ok())
            .map_err(|why| format!("`{text}`, want I/N with I from 0: {why}"))
    }
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_once_and_keep_batches_whole() {
        for (things, count, at_once) in [(10, 3, 4), (3, 5, 1), (100, 7, 8), (0, 2, 4), (17, 1, 16)] {
            let parts: Vec<_> = (0..count).map(|index| Shard { index, count }.of_batches(things, at_once)).collect();
            assert_eq!(parts.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..things).collect::<Vec<_>>());
            assert!(parts.iter().all(|part| part.is_empty() || part.start.is_multiple_of(at_once)), "{parts:?}");
        }
        assert_eq!(Shard::WHOLE.of(5), 0..5);
    }

    #[test]
    fn numbers_come_from_the_text_or_from_a_scheduler() {
        let parse = |text: &str, variables: &[(&str, &str)]| {
            Shard::parse(text, |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let shard = |index, count| Ok(Shard { index, count });
        assert_eq!(parse("2/8", &[]), shard(2, 8));
        let array = [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_MIN", "1"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert_eq!(parse("auto", &array), shard(2, 4));
        assert_eq!(parse("auto/6", &array), shard(2, 6));
        assert_eq!(parse("auto/6", &[("JOB_COMPLETION_INDEX", "5")]), shard(5, 6));
        for wrong in ["8/8", "1", "a/2", "1/0", "-1/2", "auto", "auto/", "/2", ""] {
            assert!(parse(wrong, &[]).is_err(), "{wrong}");
        }
    }
}
