//! GIF: the first frame on the canvas that Pillow gives it.
//!
//! Reference: `PIL/GifImagePlugin.py`. The canvas is the screen, or larger where the frame is. What the frame leaves free has the
//! transparent colour, else colour 0 (and not the background's).

use std::{io::Cursor, num::NonZeroU64};

use ::gif::{DecodeOptions, Decoder, DecodingError, MemoryLimit};

use super::{Mode, Picture, indexed};

/// Width and height of the canvas.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let mut decoder = open(bytes)?;
    let screen = [decoder.width(), decoder.height()].map(u32::from);
    let frame = decoder.next_frame_info().map_err(reason)?.ok_or("it holds no picture")?;
    let [right, bottom] =
        [(frame.left, frame.width), (frame.top, frame.height)].map(|(start, side)| u32::from(start) + u32::from(side));
    if frame.width == 0 || frame.height == 0 {
        return Err("its first frame is empty".to_owned());
    }
    Ok((screen[0].max(right), screen[1].max(bottom)))
}

/// The first frame.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let (width, height) = dimensions(bytes)?;
    let mut decoder = open(bytes)?;
    let global = decoder.global_palette().unwrap_or_default().to_vec();
    let frame = decoder.read_next_frame().map_err(reason)?.ok_or("it holds no picture")?;

    let mut canvas = vec![frame.transparent.unwrap_or(0); width as usize * height as usize];
    let lines = canvas.chunks_exact_mut(width as usize).skip(usize::from(frame.top));
    for (line, part) in lines.zip(frame.buffer.chunks_exact(usize::from(frame.width))) {
        line[usize::from(frame.left)..][..part.len()].copy_from_slice(part);
    }
    // As Pillow: a ramp of greys is no palette, which decides how the picture is resized.
    let is_ramp = |palette: &[u8]| {
        palette.as_chunks::<3>().0.iter().zip(0..=u8::MAX).all(|(colour, index)| *colour == [index; 3])
    };
    match &frame.palette {
        // Pillow resizes it as greys and colours it by the other palette.
        Some(own) if is_ramp(own) && !is_ramp(&global) => {
            Err("its frame has greys for a palette beside another palette, which is not read".to_owned())
        }
        Some(own) if !is_ramp(own) => indexed(width, height, &canvas, own),
        None if !is_ramp(&global) => indexed(width, height, &canvas, &global),
        _ => Picture::new(Mode::Grey, width, height, canvas),
    }
}

fn open(bytes: &[u8]) -> Result<Decoder<Cursor<&[u8]>>, String> {
    let mut options = DecodeOptions::new();
    // The sides of a frame are 16-bit numbers, and the caller has compared them with its own limit.
    options.set_memory_limit(MemoryLimit::Bytes(NonZeroU64::MAX));
    options.read_info(Cursor::new(bytes)).map_err(reason)
}

fn reason(error: DecodingError) -> String {
    match error {
        DecodingError::UnexpectedEof => "it is cut off".to_owned(),
        other => other.to_string(),
    }
}
