//! Images that a user is told about: the first few by name, the rest by their number.

use std::fmt;

/// How many are named.
pub const NAMED: usize = 5;

/// Names in the order they came; shown as `a.jpg, b.jpg and 3 more`.
#[derive(Debug, Default)]
pub struct Named {
    first: Vec<String>,
    count: usize,
}

impl Named {
    /// Adds a name; whether it is one of the first few.
    pub fn add(&mut self, name: impl Into<String>) -> bool {
        self.count += 1;
        let is_named = self.first.len() < NAMED;
        if is_named {
            self.first.push(name.into());
        }
        is_named
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many are not named.
    pub fn more(&self) -> usize {
        self.count - self.first.len()
    }

    /// The warning that these images were cut off; `None` where there are none.
    pub fn truncated_images(&self) -> Option<String> {
        let count = self.count;
        (count > 0).then(|| format!("{count} truncated image(s) were decoded as far as they went: {self}"))
    }
}

impl fmt::Display for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.first.join(", "))?;
        match self.more() {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
        }
    }
}

/// How many examples an error names.
const EXAMPLES: usize = 3;

/// The first few of `all`.
pub(super) fn examples(all: &[String]) -> String {
    let more = if all.len() > EXAMPLES { ", …" } else { "" };
    format!("{}{more}", all[..all.len().min(EXAMPLES)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_are_named() {
        let mut named = Named::default();
        assert_eq!(named.truncated_images(), None);
        let kept: Vec<bool> = (0..7).map(|index| named.add(format!("{index}.jpg"))).collect();
        assert_eq!(kept, [true, true, true, true, true, false, false]);
        let text =
            "7 truncated image(s) were decoded as far as they went: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more";
        assert_eq!(named.truncated_images().unwrap(), text);
    }
}
