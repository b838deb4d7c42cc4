//! SHA-256 (FIPS 180-4) of a file: how a checkpoint is named beside the numbers it gave.

use std::{io::Read, path::Path};

use crate::Result;

/// The first 32 bits of the fractional parts of the square roots of the first 8 primes, and of the cube roots of 64.
fn root_bits(root: impl Fn(f64) -> f64) -> impl Iterator<Item = u32> {
    let is_prime = |number: &u32| (2..*number).all(|divisor| !number.is_multiple_of(divisor));
    (2..).filter(is_prime).map(move |prime| (root(f64::from(prime)).fract() * 4_294_967_296.0) as u32)
}

/// Its SHA-256 as 64 hexadecimal digits, as `sha256sum` prints it.
///
/// # Errors
/// The file cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hash = Sha256::new();
    // A multiple of 64, and whole but for the last.
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => return Ok(hash.finish(&buffer[..filled])),
                count => filled += count,
            }
        }
        hash.blocks(&buffer);
    }
}

struct Sha256 {
    state: [u32; 8],
    constants: [u32; 64],
    bytes: u64,
}

impl Sha256 {
    fn new() -> Self {
        let (mut state, mut constants) = ([0; 8], [0; 64]);
        state.iter_mut().zip(root_bits(f64::sqrt)).for_each(|(word, bits)| *word = bits);
        constants.iter_mut().zip(root_bits(f64::cbrt)).for_each(|(word, bits)| *word = bits);
        Self { state, constants, bytes: 0 }
    }

    /// Whole blocks of 64 bytes.
    fn blocks(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        for block in data.as_chunks::<64>().0 {
            let mut words = [0; 64];
            for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
                *word = u32::from_be_bytes(*bytes);
            }
            for index in 16..64 {
                let (early, late): (u32, u32) = (words[index - 15], words[index - 2]);
                let early = early.rotate_right(7) ^ early.rotate_right(18) ^ (early >> 3);
                let late = late.rotate_right(17) ^ late.rotate_right(19) ^ (late >> 10);
                words[index] = late.wrapping_add(words[index - 7]).wrapping_add(early).wrapping_add(words[index - 16]);
            }
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = self.state;
            for (word, constant) in words.into_iter().zip(self.constants) {
                let mixed = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
                let chosen = (e & f) ^ (!e & g);
                let first = h.wrapping_add(mixed).wrapping_add(chosen).wrapping_add(constant).wrapping_add(word);
                let mixed = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
                let second = mixed.wrapping_add((a & b) ^ (a & c) ^ (b & c));
                (a, b, c, d, e, f, g, h) = (first.wrapping_add(second), a, b, c, d.wrapping_add(first), e, f, g);
            }
            for (word, add) in self.state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                *word = word.wrapping_add(add);
            }
        }
    }

    /// The last bytes, then a 1, zeros, and the number of bits.
    fn finish(mut self, rest: &[u8]) -> String {
        let bits = 8 * (self.bytes + rest.len() as u64);
        let mut last = [rest, &[0x80]].concat();
        last.resize((last.len() + 8).next_multiple_of(64) - 8, 0);
        last.extend(bits.to_be_bytes());
        self.blocks(&last);
        self.state.map(|word| format!("{word:08x}")).concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Python's `hashlib.sha256`. The lengths stand around a block's and a buffer's ends.
    #[test]
    fn it_is_hashlibs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for (length, expected) in LENGTHS {
            fs_err::write(&path, (0..length).map(|index| (index % 251) as u8).collect::<Vec<_>>()).unwrap();
            assert_eq!(of_file(&path).unwrap(), expected, "{length}");
        }
    }

    const LENGTHS: [(usize, &str); 8] = [
        (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (3, "ae4b3280e56e2faf83f414a6e3dabe9d5fbe18976544c05fed121accb85b53fc"),
        (55, "463eb28e72f82e0a96c0a4cc53690c571281131f672aa229e0d45ae59b598b59"),
        (56, "da2ae4d6b36748f2a318f23e7ab1dfdf45acdc9d049bd80e59de82a60895f562"),
        (64, "fdeab9acf3710362bd2658cdc9a29e8f9c757fcf9811603a8c447cd1d9151108"),
        (119, "da18797ed7c3a777f0847f429724a2d8cd5138e6ed2895c3fa1a6d39d18f7ec6"),
        (1048576, "631b84027d6b9e52b539c4e8373622d23032dfadc64d60af87339c9037e4f769"),
        (1048633, "89525dc11ef84aecc03a247b1003caf849a5b3d47c3fd4eb70afba92244d1e4a"),
    ];
}
