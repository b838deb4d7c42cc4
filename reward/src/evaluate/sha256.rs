//! SHA-256 (FIPS 180-4) of files and bytes, as `sha256sum` prints it.

use std::{io::Read, path::Path};

use crate::Result;

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
const ROUNDS: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98,
    0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8,
    0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819,
    0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2,
];

/// The same of the square roots of the first eight primes.
const START: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// Hex digits of the hash of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> String {
    let (blocks, rest) = bytes.as_chunks();
    let mut state = START;
    blocks.iter().for_each(|block| absorb(&mut state, block));
    finish(state, rest, bytes.len() as u64)
}

/// Hex digits of the hash of a file, read in pieces.
///
/// # Errors
/// The file cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    const PIECE: usize = 1 << 20;
    let mut file = fs_err::File::open(path)?;
    let (mut state, mut length, mut piece) = (START, 0, Vec::with_capacity(PIECE));
    loop {
        piece.clear();
        length += file.by_ref().take(PIECE as u64).read_to_end(&mut piece)? as u64;
        let (blocks, rest) = piece.as_chunks();
        blocks.iter().for_each(|block| absorb(&mut state, block));
        // Only the last piece is short.
        if piece.len() < PIECE {
            return Ok(finish(state, rest, length));
        }
    }
}

fn absorb(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut schedule = [0_u32; 64];
    for (word, bytes) in schedule.iter_mut().zip(block.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for index in 16..64 {
        let (near, far) = (schedule[index - 2], schedule[index - 15]);
        let near = near.rotate_right(17) ^ near.rotate_right(19) ^ (near >> 10);
        let far = far.rotate_right(7) ^ far.rotate_right(18) ^ (far >> 3);
        schedule[index] = schedule[index - 16].wrapping_add(far).wrapping_add(schedule[index - 7]).wrapping_add(near);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, word) in ROUNDS.iter().zip(schedule) {
        let sum = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let first = h.wrapping_add(sum).wrapping_add(choice).wrapping_add(*round).wrapping_add(word);
        let sum = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let second = sum.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(first), c, b, a, first.wrapping_add(second));
    }
    for (word, mixed) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(mixed);
    }
}

/// `rest`: the fewer than 64 bytes after the last whole block of a message of `length` bytes.
fn finish(mut state: [u32; 8], rest: &[u8], length: u64) -> String {
    let mut end = rest.to_vec();
    end.push(0x80);
    end.resize(if rest.len() < 56 { 56 } else { 120 }, 0);
    end.extend((length * 8).to_be_bytes());
    end.as_chunks().0.iter().for_each(|block| absorb(&mut state, block));
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's hashlib.
    #[test]
    fn hashes_are_pythons() {
        for (bytes, wanted) in [
            (Vec::new(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (vec![b'a'; 1000], "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3"),
        ] {
            assert_eq!(of_bytes(&bytes), wanted);
        }
    }

    #[test]
    fn a_file_hashes_as_its_bytes_at_every_length_of_rest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for length in (0..130).chain([(1 << 20) - 1, 1 << 20, (1 << 20) + 57]) {
            let bytes: Vec<u8> = (0..length).map(|index: u32| (index * 7) as u8).collect();
            fs_err::write(file.path(), &bytes).unwrap();
            assert_eq!(of_file(file.path()).unwrap(), of_bytes(&bytes), "{length}");
        }
    }
}
