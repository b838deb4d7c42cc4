//! TensorBoard event files: TFRecord framing around the few protobuf fields that scalars and images need
//! (<https://github.com/tensorflow/tensorboard>, `tensorboard/compat/proto/event.proto` and `summary.proto`).

use std::{
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::Result;

/// Writes one event file.
pub struct EventWriter {
    file: fs_err::File,
}

impl EventWriter {
    /// Starts a new file in `folder`; what earlier files say after `step` is dropped by TensorBoard.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn create(folder: &Path, step: usize) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        let name = format!("events.out.tfevents.{}.{}", seconds() as u64, std::process::id());
        let mut writer = Self { file: fs_err::File::create(folder.join(name))? };
        let mut version = event(0);
        bytes_field(&mut version, 3, b"brain.Event:2");
        writer.record(&version)?;
        // SessionLog { status: START }
        let mut start = event(step as i64 + 1);
        bytes_field(&mut start, 7, &[0x08, 1]);
        writer.record(&start)?;
        Ok(writer)
    }

    /// Adds named numbers at `step`.
    ///
    /// # Errors
    /// The disk is full.
    pub fn scalars<'a>(&mut self, step: i64, scalars: impl Iterator<Item = (&'a str, f32)>) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = Vec::new();
            bytes_field(&mut entry, 1, tag.as_bytes());
            entry.push(0x15); // field 2, 32 bits
            entry.extend(value.to_le_bytes());
            bytes_field(&mut summary, 1, &entry);
        }
        self.summary(step, &summary)
    }

    /// Adds a named RGB picture, a whole PNG file, at `step`.
    ///
    /// # Errors
    /// The disk is full.
    pub fn image(&mut self, step: i64, tag: &str, png: &[u8], [height, width]: [u32; 2]) -> Result<()> {
        const RGB: u32 = 3;
        let mut image = Vec::new();
        for (field, value) in [(1, height), (2, width), (3, RGB)] {
            image.push(field << 3);
            varint(&mut image, u64::from(value));
        }
        bytes_field(&mut image, 4, png);
        let mut entry = Vec::new();
        bytes_field(&mut entry, 1, tag.as_bytes());
        bytes_field(&mut entry, 4, &image);
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &entry);
        self.summary(step, &summary)
    }

    fn summary(&mut self, step: i64, summary: &[u8]) -> Result<()> {
        let mut event = event(step);
        bytes_field(&mut event, 5, summary);
        self.record(&event)
    }

    /// length, masked CRC of the length, data, masked CRC of the data.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat();
        Ok(self.file.write_all(&record)?)
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// An event's time and step.
fn event(step: i64) -> Vec<u8> {
    let mut event = vec![0x09]; // field 1, 64 bits
    event.extend(seconds().to_le_bytes());
    event.push(0x10); // field 2, varint
    varint(&mut event, step as u64);
    event
}

fn bytes_field(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of every record of the one file in `folder`.
    fn records(folder: &Path) -> Vec<Vec<u8>> {
        let file = fs_err::read_dir(folder).unwrap().next().unwrap().unwrap();
        let bytes = fs_err::read(file.path()).unwrap();
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let (data, after) = after[4..].split_at(u64::from_le_bytes(*length) as usize);
            assert_eq!(after[..4], masked_crc(data));
            records.push(data.to_vec());
            rest = &after[4..];
        }
        records
    }

    #[test]
    fn scalars_and_images_are_the_bytes_of_protobuf() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 0).unwrap();
        writer.scalars(6, [("loss", 0.5)].into_iter()).unwrap();
        writer.image(7, "t", &[1, 2, 3], [2, 300]).unwrap();
        let [_version, _start, scalars, image] = &records(folder.path())[..] else { panic!("want four records") };
        // After the time, 9 bytes: step, summary, value, tag, number.
        let loss = *b"\x10\x06\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f";
        assert_eq!(scalars[9..], loss);
        // Step, summary, value, tag, image: height 2, width 300 = 2 * 128 + 44, colour space 3, file.
        let picture = *b"\x10\x07\x2a\x13\x0a\x11\x0a\x01t\x22\x0c\x08\x02\x10\xac\x02\x18\x03\x22\x03\x01\x02\x03";
        assert_eq!(image[9..], picture);
    }
}
