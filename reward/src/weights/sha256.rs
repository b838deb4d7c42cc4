//! SHA-256 of files and bytes, as `sha256sum` prints it: how a checkpoint is named beside the numbers it gave.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Result;

/// SHA-256 of a file, as 64 hexadecimal digits.
///
/// # Errors
/// The file cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut fs_err::File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// SHA-256 of bytes, as 64 hexadecimal digits.
pub fn of_bytes(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example "abc".
    #[test]
    fn files_and_bytes_alike() {
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("abc"), "abc").unwrap();
        assert_eq!((of_bytes(b"abc"), of_file(&folder.path().join("abc")).unwrap()), (digest.into(), digest.into()));
    }
}
