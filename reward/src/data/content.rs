//! What data holds, as a hash: the same for the same rows, wherever their table lies and however its path is spelled.

use blake3::Hasher;

/// The hash of rows in their order: prompts, cells of a table.
pub fn content_hash(rows: impl Iterator<Item = impl AsRef<[u8]>>) -> String {
    let mut cells = Cells::default();
    rows.for_each(|row| cells.add(row.as_ref()));
    cells.hash().to_hex().to_string()
}

/// Hashes cells; lengths keep neighbours apart.
#[derive(Debug, Default)]
pub(super) struct Cells(Hasher);

impl Cells {
    pub(super) fn add(&mut self, cell: &[u8]) {
        self.0.update(&(cell.len() as u64).to_le_bytes()).update(cell);
    }

    pub(super) fn hash(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::content_hash;

    #[test]
    fn rows_their_order_and_their_borders_count() {
        let hash = |rows: &[&str]| content_hash(rows.iter());
        assert_eq!(hash(&["a", "b"]), content_hash(["a".to_owned(), "b".to_owned()].into_iter()));
        let others: [&[&str]; 5] = [&["b", "a"], &["ab"], &["", "ab"], &["a", "b", ""], &[]];
        for other in others {
            assert_ne!(hash(&["a", "b"]), hash(other), "{other:?}");
        }
        assert_eq!(hash(&[]).len(), 64);
    }
}
