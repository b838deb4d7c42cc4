//! BMP, as far as Pillow reads it and in its modes.
//!
//! Reference: `PIL/BmpImagePlugin.py` of Pillow 13.0, `Unpack.c`. Deviation: palettes of few greys, which Pillow takes for
//! pixels of another depth than the file's, are refused.

use super::{Mode, Picture, indexed};

/// Bytes before the header of the bitmap.
const FILE_HEADER: usize = 14;

/// Width and height.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let header = Header::read(bytes)?;
    Ok((header.width, header.height))
}

/// The picture.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let header = Header::read(bytes)?;
    match header.bits {
        1 | 4 | 8 => header.palette_picture(bytes),
        _ => header.colour_picture(bytes),
    }
}

/// The header of the bitmap.
struct Header {
    /// Bytes of it.
    length: usize,
    width: u32,
    height: u32,
    /// The first row comes first.
    top_down: bool,
    bits: u16,
    compression: u32,
    /// As said; 0 for as many as there can be.
    colours: u32,
    /// Where the pixels begin, as said.
    offset: usize,
    /// Masks of red, green, blue and alpha, where there are any.
    masks: Option<[u32; 4]>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let long = |at: usize| match bytes.get(at..at + 4) {
            Some(four) => Ok(u32::from_le_bytes([four[0], four[1], four[2], four[3]])),
            None => Err("it ends within its header".to_owned()),
        };
        let short = |at: usize| long(at).map(|four| four as u16);
        let length = long(FILE_HEADER)? as usize;
        let offset = long(10)? as usize;
        if length == 12 {
            let (width, height) = (u32::from(short(18)?), u32::from(short(20)?));
            let bits = short(24)?;
            return Ok(Self {
                length,
                width,
                height,
                top_down: false,
                bits,
                compression: 0,
                colours: 0,
                offset,
                masks: None,
            });
        }
        if ![40, 52, 56, 64, 108, 124].contains(&length) {
            return Err(format!("its header has {length} bytes: no known kind of BMP"));
        }
        let top_down = long(22)? >> 24 == 0xFF;
        let (width, height, compression) = (long(18)?, long(22)?, long(30)?);
        let height = if top_down { height.wrapping_neg() } else { height };
        let mask = |index: usize| long(FILE_HEADER + 40 + 4 * index);
        let masks = match (compression, length) {
            (3, 40 | 52) => Some([mask(0)?, mask(1)?, mask(2)?, 0]),
            (3, _) => Some([mask(0)?, mask(1)?, mask(2)?, mask(3)?]),
            _ => None,
        };
        Ok(Self { length, width, height, top_down, bits: short(28)?, compression, colours: long(46)?, offset, masks })
    }

    /// Where the palette begins.
    fn palette_start(&self) -> usize {
        FILE_HEADER + self.length + if self.length == 40 && self.masks.is_some() { 12 } else { 0 }
    }

    /// Calls `each` with the rows of the file, the first row of the picture first.
    fn rows<'a>(&self, rows: &'a [u8], stride: usize) -> Result<Vec<&'a [u8]>, String> {
        let rows: Vec<&[u8]> = rows.chunks_exact(stride).take(self.height as usize).collect();
        if rows.len() < self.height as usize {
            return Err(format!("it is cut off: {} of its {} rows are there", rows.len(), self.height));
        }
        Ok(if self.top_down { rows } else { rows.into_iter().rev().collect() })
    }

    /// Bytes of a row of the file, a multiple of four.
    fn stride(&self) -> usize {
        (self.width as usize * usize::from(self.bits)).div_ceil(32) * 4
    }

    /// The picture of 1, 4 or 8 bits a pixel.
    fn palette_picture(&self, bytes: &[u8]) -> Result<Picture, String> {
        let entry = if self.length == 12 { 3 } else { 4 };
        let count = if self.colours == 0 { 1 << self.bits } else { self.colours as usize };
        if count > 256 {
            return Err(format!("its palette has {count} colours, wanted 256 at most"));
        }
        let start = self.palette_start();
        let palette: Vec<u8> = bytes
            .get(start..start + count * entry)
            .ok_or("it ends within its palette")?
            .chunks_exact(entry)
            .flat_map(|colour| [colour[2], colour[1], colour[0]])
            .collect();
        let offset = match self.offset {
            0 => start + count * entry,
            // Some writers leave the palette out of the sum.
            offset if offset == FILE_HEADER + self.length => offset + count * entry,
            offset => offset,
        };
        let packed = bytes.get(offset..).ok_or("it ends before its first pixel")?;
        let (width, height, bits) = (self.width as usize, self.height as usize, usize::from(self.bits));
        let indices: Vec<u8> = match self.compression {
            0 => {
                let index = |row: &[u8], x: usize| {
                    let (place, shift) = ((x * bits).div_euclid(8), 8 - bits - (x * bits) % 8);
                    row[place] >> shift & ((1_u16 << bits) - 1) as u8
                };
                let rows = self.rows(packed, self.stride())?;
                rows.into_iter().flat_map(|row| (0..width).map(move |x| index(row, x))).collect()
            }
            1 | 2 => {
                let indices = run_lengths(packed, offset, width, height, self.compression == 2);
                self.rows(&indices, width)?.concat()
            }
            3 => return Err("it has masks for colours, and a palette".to_owned()),
            other => return Err(format!("its compression {other} is not read")),
        };
        // As Pillow: such greys are no palette, which decides how the picture is resized.
        let grey = |index: u8| if count == 2 { [index * 255; 3] } else { [index; 3] };
        let is_grey = palette.as_chunks::<3>().0.iter().zip(0..=u8::MAX).all(|(colour, index)| *colour == grey(index));
        match (is_grey, count, self.bits, self.compression) {
            (false, ..) => indexed(self.width, self.height, &indices, &palette),
            (true, 1 | 2, 1, 0) => {
                let samples = indices.into_iter().map(|index| index * 255).collect();
                Picture::new(Mode::Bilevel, self.width, self.height, samples)
            }
            (true, 3.., 8, _) | (true, 3.., _, 1 | 2) => Picture::new(Mode::Grey, self.width, self.height, indices),
            _ => Err(format!("its palette of {count} greys for {} bits is not read", self.bits)),
        }
    }

    /// The picture of 16, 24 or 32 bits a pixel.
    fn colour_picture(&self, bytes: &[u8]) -> Result<Picture, String> {
        let (mode, unpack) = self.layout()?;
        let offset = if self.offset == 0 { self.palette_start() } else { self.offset };
        let packed = bytes.get(offset..).ok_or("it ends before its first pixel")?;
        let size = usize::from(self.bits >> 3);
        let mut samples = Vec::with_capacity(self.width as usize * self.height as usize * mode.pixel_type().size());
        for row in self.rows(packed, self.stride())? {
            for pixel in row.chunks_exact(size).take(self.width as usize) {
                samples.extend_from_slice(&unpack.pixel(pixel)[..mode.pixel_type().size()]);
            }
        }
        Picture::new(mode, self.width, self.height, samples)
    }

    fn layout(&self) -> Result<(Mode, Unpack), String> {
        const OPAQUE: usize = usize::MAX;
        let bytes =
            |order: [usize; 4]| Ok((if order[3] == OPAQUE { Mode::Rgb } else { Mode::Rgba }, Unpack::Bytes(order)));
        match (self.compression, self.bits, self.masks) {
            (0, 16, _) | (3, 16, Some([0x7C00, 0x3E0, 0x1F, _])) => Ok((Mode::Rgb, Unpack::Bits { green: 5 })),
            (3, 16, Some([0xF800, 0x7E0, 0x1F, _])) => Ok((Mode::Rgb, Unpack::Bits { green: 6 })),
            (0, 24 | 32, _) | (3, 24, Some([0xFF_0000, 0xFF00, 0xFF, _])) => bytes([2, 1, 0, OPAQUE]),
            (3, 32, Some(masks)) => match masks {
                [0xFF_0000, 0xFF00, 0xFF, 0] => bytes([2, 1, 0, OPAQUE]),
                [0xFF00_0000, 0xFF_0000, 0xFF00, 0] => bytes([3, 2, 1, OPAQUE]),
                [0xFF00_0000, 0xFF00, 0xFF, 0] => bytes([3, 1, 0, OPAQUE]),
                [0xFF00_0000, 0xFF_0000, 0xFF00, 0xFF] => bytes([3, 2, 1, 0]),
                [0xFF, 0xFF00, 0xFF_0000, 0xFF00_0000] => bytes([0, 1, 2, 3]),
                [0xFF_0000, 0xFF00, 0xFF, 0xFF00_0000] | [0, 0, 0, 0] => bytes([2, 1, 0, 3]),
                [0xFF00_0000, 0xFF00, 0xFF, 0xFF_0000] => bytes([3, 1, 0, 2]),
                _ => Err("its masks for colours are not read".to_owned()),
            },
            (3, 16 | 24, _) => Err("its masks for colours are not read".to_owned()),
            (0 | 3, bits, _) => Err(format!("its {bits} bits a pixel are not read")),
            (other, ..) => Err(format!("its compression {other} is not read for {} bits", self.bits)),
        }
    }
}

/// How the bytes of a pixel make red, green, blue and alpha.
enum Unpack {
    /// The place of each; alpha beyond the end where there is none.
    Bytes([usize; 4]),
    /// 16 bits, blue lowest; red and blue of five bits.
    Bits { green: u32 },
}

impl Unpack {
    fn pixel(&self, pixel: &[u8]) -> [u8; 4] {
        match self {
            Self::Bytes(order) => order.map(|place| pixel.get(place).copied().unwrap_or(255)),
            Self::Bits { green } => {
                let value = u32::from(u16::from_le_bytes([pixel[0], pixel[1]]));
                let part = |shift: u32, bits: u32| {
                    let most = (1 << bits) - 1;
                    ((value >> shift & most) * 255).div_euclid(most) as u8
                };
                [part(5 + green, 5), part(5, *green), part(0, 5), 255]
            }
        }
    }
}

/// The pixels, the lowest row first, as far as they go. Pillow's way with lines that are too short or too long.
/// `start`: where in the file `packed` begins; runs of single pixels end at even places.
fn run_lengths(packed: &[u8], start: usize, width: usize, height: usize, nibbles: bool) -> Vec<u8> {
    let all = width * height;
    let (mut pixels, mut place, mut x) = (Vec::with_capacity(all), 0, 0);
    let pair = |place: usize| Some([*packed.get(place)?, *packed.get(place + 1)?]);
    while pixels.len() < all {
        let Some([count, byte]) = pair(place) else { break };
        place += 2;
        let halves = if nibbles { [byte >> 4, byte & 15] } else { [byte; 2] };
        match (count, byte) {
            (0, 0) => {
                pixels.resize(pixels.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some([right, up]) = pair(place) else { break };
                place += 2;
                let skipped = usize::from(right) + usize::from(up) * width;
                pixels.resize(all.min(pixels.len() + skipped), 0);
                x = pixels.len() % width;
            }
            (0, count) => {
                let wanted = usize::from(count).min(all - pixels.len());
                let length = if nibbles { wanted.div_ceil(2) } else { wanted };
                let single = &packed[place..packed.len().min(place + length)];
                place += single.len();
                let before = pixels.len();
                if nibbles {
                    pixels.extend(single.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(wanted));
                } else {
                    pixels.extend_from_slice(single);
                }
                if single.len() < length || before + wanted == all {
                    break;
                }
                x += usize::from(count);
                place += (start + place) % 2;
            }
            (count, _) => {
                let count = usize::from(count).min(width.saturating_sub(x));
                pixels.extend((0..count).map(|index| halves[index % 2]));
                x += count;
            }
        }
    }
    pixels.truncate(all);
    pixels
}
