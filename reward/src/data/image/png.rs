//! PNG in the modes that Pillow gives its files.

use std::io::{Cursor, ErrorKind, Read, Write};

use ::png::{ColorType, Decoder, DecodingError, Info, Limits, Transformations};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};

use super::{Mode, Picture};

/// The picture and whether its file was cut off.
pub(super) fn decode(bytes: &[u8]) -> Result<(Picture, bool), String> {
    match decode_whole(bytes) {
        Err(DecodingError::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => {
            let completed = completed(bytes).ok_or("it ends before its first pixel")?;
            Ok((decode_whole(&completed).map_err(|error| error.to_string())??, true))
        }
        other => Ok((other.map_err(|error| error.to_string())??, false)),
    }
}

fn decode_whole(bytes: &[u8]) -> Result<Result<Picture, String>, DecodingError> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: usize::MAX });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.ignore_checksums(true);
    let header = decoder.read_header_info()?;
    let (mode, transformations) = match (header.color_type, header.bit_depth as u8) {
        (ColorType::Grayscale, 16) => (Mode::Grey16, Transformations::IDENTITY),
        (ColorType::Grayscale, 1) => (Mode::Bilevel, Transformations::EXPAND),
        (ColorType::Grayscale, _) => (Mode::Grey, Transformations::EXPAND),
        (ColorType::Indexed, _) => (Mode::Palette, Transformations::EXPAND),
        // Of colours with 16 bits Pillow keeps the high byte.
        (ColorType::Rgb, _) => (Mode::Rgb, Transformations::EXPAND | Transformations::STRIP_16),
        (ColorType::GrayscaleAlpha, _) => (Mode::GreyAlpha, Transformations::STRIP_16),
        (ColorType::Rgba, _) => (Mode::Rgba, Transformations::STRIP_16),
    };
    decoder.set_transformations(transformations);
    let mut reader = decoder.read_info()?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or(DecodingError::LimitsExceeded)?];
    let frame = reader.next_frame(&mut samples)?;
    if mode == Mode::Grey16 {
        samples.as_chunks_mut::<2>().0.iter_mut().for_each(|value| *value = u16::from_be_bytes(*value).to_ne_bytes());
    }
    // A transparent colour or palette expands to an alpha that Pillow does not look at.
    let channels = frame.color_type.samples();
    if channels > mode.pixel_type().size() {
        let mut place = 0;
        samples.retain(|_| {
            place += 1;
            place % channels != 0
        });
    }
    Ok(Picture::new(mode, frame.width, frame.height, samples))
}

/// A file that ends early, with the rows it lacks set to 0; none if it holds no pixels.
///
/// `png` keeps back the last 32 KiB before an early end, so the rows are unpacked here, as far as they go, and packed
/// into a whole file for it.
fn completed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = bytes[..8].to_vec();
    let mut packed = Vec::new();
    let mut rest = &bytes[8..];
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [length, name] = [&head[..4], &head[4..]];
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        let body = &after[..length.min(after.len())];
        match name {
            b"IDAT" => packed.extend_from_slice(body),
            // The first 8 bytes of an animation's other frames, a sequence number, are no pixels: they come later.
            b"IEND" => break,
            _ if packed.is_empty() => append_chunk(&mut file, name, body),
            _ => {}
        }
        rest = after.get(length + 4..).unwrap_or_default();
    }
    if packed.is_empty() {
        return None;
    }

    let mut decoder = Decoder::new(Cursor::new(bytes));
    let header = decoder.read_header_info().ok()?;
    let row_lengths = row_lengths(header);
    let mut rows = Vec::new();
    // An early end is an error here; what came before it is in `rows`.
    let _ = ZlibDecoder::new(&packed[..]).take(row_lengths.iter().sum::<usize>() as u64).read_to_end(&mut rows);
    let mut complete = 0;
    for length in &row_lengths {
        // Pillow drops a row if part of it is missing.
        if complete + length > rows.len() {
            rows.truncate(complete);
            rows.extend(std::iter::repeat_n(0, *length));
        }
        complete += length;
    }

    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(&rows).ok()?;
    append_chunk(&mut file, b"IDAT", &encoder.finish().ok()?);
    append_chunk(&mut file, b"IEND", &[]);
    Some(file)
}

/// Bytes of every row with its filter byte, in the order of the file: of an interlaced picture, pass after pass.
fn row_lengths(header: &Info<'_>) -> Vec<usize> {
    /// Left, top, step across, step down (PNG specification, section 8.2).
    const ADAM7: [[u32; 4]; 7] =
        [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
    let passes = if header.interlaced { &ADAM7[..] } else { &[[0, 0, 1, 1]] };
    let passes = passes.iter().flat_map(|[left, top, across, down]| {
        let columns = header.width.saturating_sub(*left).div_ceil(*across);
        let rows = if columns > 0 { header.height.saturating_sub(*top).div_ceil(*down) } else { 0 };
        std::iter::repeat_n(header.raw_row_length_from_width(columns), rows as usize)
    });
    passes.collect()
}

fn append_chunk(file: &mut Vec<u8>, name: &[u8], body: &[u8]) {
    const UNCHECKED: [u8; 4] = [0; 4];
    file.extend_from_slice(&(body.len() as u32).to_be_bytes());
    file.extend_from_slice(name);
    file.extend_from_slice(body);
    file.extend_from_slice(&UNCHECKED);
}
