//! PNG in the modes that Pillow gives its files.
//!
//! Deviation: pixels whose checksum (Adler-32) does not hold are an error; Pillow shows them with
//! `LOAD_TRUNCATED_IMAGES`.

use std::io::{Cursor, ErrorKind, Read, Write};

use ::png::{ColorType, DecodeOptions, Decoder, DecodingError, Info, Limits, Transformations};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};

use super::{Mode, Picture, indexed};

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Width and height from the first chunk.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let head = bytes.get(8..24).ok_or("it ends within its header")?;
    match &head[4..8] {
        b"IHDR" => {}
        b"CgBI" => {
            return Err("it is of the kind that Xcode makes for iPhones, which only Apple's programs read".into());
        }
        other => return Err(format!("its first chunk is {}, wanted IHDR", other.escape_ascii())),
    }
    let side = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Ok((side(8), side(12)))
}

/// The picture and whether its file was cut off.
pub(super) fn decode(bytes: &[u8]) -> Result<(Picture, bool), String> {
    let error = match pixels(bytes) {
        Ok(picture) => return Ok((picture?, false)),
        Err(DecodingError::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => None,
        Err(error) => Some(error.to_string()),
    };
    // A chunk that is not known, or whose checksum is wrong, need not concern the pixels.
    let essence = Essence::of(bytes, error.as_deref())?;
    let file = if essence.is_cut { essence.completed()? } else { essence.file()? };
    let picture = pixels(&file).map_err(|second| error.unwrap_or_else(|| second.to_string()))??;
    Ok((picture, essence.is_cut))
}

/// The picture of a file whose checksums hold.
fn pixels(bytes: &[u8]) -> Result<Result<Picture, String>, DecodingError> {
    /// For rows under way; the picture itself is not counted.
    const LIMITS: Limits = Limits { bytes: 1 << 30 };
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(LIMITS);
    let header = decoder.read_header_info()?;
    let depth = header.bit_depth as u8;
    let (mode, transformations) = match (header.color_type, depth) {
        (ColorType::Grayscale, 16) => (Mode::Grey16, Transformations::IDENTITY),
        (ColorType::Grayscale, 8) => (Mode::Grey, Transformations::IDENTITY),
        (ColorType::Grayscale, 1) => (Mode::Bilevel, Transformations::EXPAND),
        (ColorType::Grayscale, _) => (Mode::Grey, Transformations::EXPAND),
        (ColorType::Indexed, _) => (Mode::Palette, Transformations::IDENTITY),
        // Of colours with 16 bits Pillow keeps the high byte.
        (ColorType::Rgb, _) => (Mode::Rgb, Transformations::STRIP_16),
        (ColorType::GrayscaleAlpha, _) => (Mode::GreyAlpha, Transformations::STRIP_16),
        (ColorType::Rgba, _) => (Mode::Rgba, Transformations::STRIP_16),
    };
    let size = (header.width, header.height);
    decoder.set_transformations(transformations);
    let mut reader = decoder.read_info()?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or(DecodingError::LimitsExceeded)?];
    let frame = reader.next_frame(&mut samples)?;
    if (frame.width, frame.height) != size {
        return Ok(Err(format!("the first frame of its animation is {} x {} only", frame.width, frame.height)));
    }
    if mode == Mode::Grey16 {
        samples.as_chunks_mut::<2>().0.iter_mut().for_each(|value| *value = u16::from_be_bytes(*value).to_ne_bytes());
    }
    if mode == Mode::Palette {
        let indices = unpacked(&samples, frame.line_size, frame.width as usize, depth);
        let picture = match reader.info().palette.as_deref() {
            Some(palette) => indexed(frame.width, frame.height, &indices, palette),
            None => Err("it has no palette".to_owned()),
        };
        return Ok(picture);
    }
    // A transparent grey expands to an alpha that Pillow does not look at.
    if frame.color_type.samples() > mode.pixel_type().size() {
        let mut place = 0;
        samples.retain(|_| {
            place += 1;
            place % 2 != 0
        });
    }
    Ok(Picture::new(mode, frame.width, frame.height, samples))
}

/// A byte for every sample of 1, 2, 4 or 8 bits; every line is padded to whole bytes, `line` of them.
fn unpacked(samples: &[u8], line: usize, width: usize, depth: u8) -> Vec<u8> {
    let per_byte = usize::from(8_u8.div_euclid(depth));
    let mask = ((1_u16 << depth) - 1) as u8;
    let sample = |row: &[u8], x: usize| {
        let shift = 8 - usize::from(depth) * (x % per_byte + 1);
        row[x.div_euclid(per_byte)] >> shift & mask
    };
    samples.chunks_exact(line).flat_map(|row| (0..width).map(move |x| sample(row, x))).collect()
}

/// What of a file makes its pixels.
struct Essence {
    /// Signature, header and palette.
    head: Vec<u8>,
    /// The packed rows.
    packed: Vec<u8>,
    /// The file ends within the pixels.
    is_cut: bool,
}

impl Essence {
    /// `error`: what is wrong with the file, as far as it is known.
    fn of(bytes: &[u8], error: Option<&str>) -> Result<Self, String> {
        let mut found = Self { head: SIGNATURE.to_vec(), packed: Vec::new(), is_cut: true };
        let mut rest = &bytes[SIGNATURE.len()..];
        let mut begun = false;
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let [length, name] = [&head[..4], &head[4..]];
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
            let body = &after[..length.min(after.len())];
            let holds =
                || after.get(length..length + 4).is_none_or(|checksum| checksum == crc(name, body).to_be_bytes());
            match name {
                b"IDAT" => {
                    begun = true;
                    found.packed.extend_from_slice(body);
                }
                // What follows the pixels does not concern them; the frames of an animation follow too.
                _ if begun => {
                    found.is_cut = false;
                    break;
                }
                // As Pillow: what has a lower-case first letter need not be whole.
                _ if !name.iter().all(u8::is_ascii_alphabetic) || (name[0].is_ascii_uppercase() && !holds()) => {
                    return Err(format!("its chunk {} is damaged", name.escape_ascii()));
                }
                b"IHDR" | b"PLTE" => append_chunk(&mut found.head, name, body),
                b"IEND" => break,
                // Its frame may be a part of the picture.
                b"fcTL" if error.is_some() => return Err(error.unwrap_or_default().to_owned()),
                _ => {}
            }
            rest = after.get(length + 4..).unwrap_or_default();
        }
        Ok(found)
    }

    /// The file without the rest, if the checksum of its pixels holds.
    fn file(&self) -> Result<Vec<u8>, String> {
        std::io::copy(&mut ZlibDecoder::new(&self.packed[..]), &mut std::io::sink())
            .map_err(|error| format!("its pixels are damaged ({error})"))?;
        Ok(Self::with_rows(self.head.clone(), &self.packed))
    }

    /// The file with the rows it lacks set to 0.
    ///
    /// `png` keeps back the last 32 KiB before an early end. So the rows are unpacked here, as far as they go, and packed again
    /// for it.
    fn completed(&self) -> Result<Vec<u8>, String> {
        if self.packed.is_empty() {
            return Err("it ends before its first pixel".to_owned());
        }
        let mut decoder = Decoder::new(Cursor::new(&self.head));
        let header = decoder.read_header_info().map_err(|error| error.to_string())?;
        let mut rows = ZlibDecoder::new(&self.packed[..]);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        let mut is_over = false;
        for (count, length) in row_lengths(header) {
            let mut row = vec![0; length];
            for _ in 0..count {
                if !is_over {
                    match rows.read_exact(&mut row) {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::UnexpectedEof => is_over = true,
                        Err(error) => return Err(error.to_string()),
                    }
                }
                if is_over {
                    // Pillow drops a row if part of it is missing.
                    row.fill(0);
                }
                encoder.write_all(&row).map_err(|error| error.to_string())?;
            }
        }
        let packed = encoder.finish().map_err(|error| error.to_string())?;
        Ok(Self::with_rows(self.head.clone(), &packed))
    }

    fn with_rows(mut file: Vec<u8>, packed: &[u8]) -> Vec<u8> {
        append_chunk(&mut file, b"IDAT", packed);
        append_chunk(&mut file, b"IEND", &[]);
        file
    }
}

/// How many rows there are of which length in bytes, with the filter byte, in the order of the file. An interlaced
/// picture has them pass after pass.
fn row_lengths(header: &Info<'_>) -> Vec<(u32, usize)> {
    /// Left, top, step across, step down (PNG specification, section 8.2).
    const ADAM7: [[u32; 4]; 7] =
        [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
    let passes = if header.interlaced { &ADAM7[..] } else { &[[0, 0, 1, 1]] };
    let passes = passes.iter().map(|[left, top, across, down]| {
        let columns = header.width.saturating_sub(*left).div_ceil(*across);
        let rows = if columns > 0 { header.height.saturating_sub(*top).div_ceil(*down) } else { 0 };
        (rows, header.raw_row_length_from_width(columns))
    });
    passes.collect()
}

/// Whether the file is a PNG with all its chunks up to the last, each with the right checksum.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.strip_prefix(&SIGNATURE) else { return false };
    loop {
        let Some((head, after)) = rest.split_first_chunk::<8>() else { return false };
        let [length, name] = [&head[..4], &head[4..]];
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let (Some(body), Some(checksum)) = (after.get(..length), after.get(length..length + 4)) else { return false };
        if checksum != crc(name, body).to_be_bytes() {
            return false;
        }
        if name == b"IEND" {
            return true;
        }
        rest = &after[length + 4..];
    }
}

fn append_chunk(file: &mut Vec<u8>, name: &[u8], body: &[u8]) {
    file.extend_from_slice(&(body.len() as u32).to_be_bytes());
    file.extend_from_slice(name);
    file.extend_from_slice(body);
    file.extend_from_slice(&crc(name, body).to_be_bytes());
}

fn crc(name: &[u8], body: &[u8]) -> u32 {
    let mut checksum = flate2::Crc::new();
    checksum.update(name);
    checksum.update(body);
    checksum.sum()
}
