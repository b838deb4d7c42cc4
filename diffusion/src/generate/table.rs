//! `images.parquet`: a row for every image, prompt-major; paths are relative to the table's folder.

use std::path::Path;

use reward::data::parquet_writer::{self, Column};

use super::{GenerateConfig, plan::PlannedImage};
use crate::Result;

/// Writes the table. `size` is width and height in pixels.
///
/// # Errors
/// The disk is full or not writable.
pub(crate) fn write(
    path: &Path,
    config: &GenerateConfig,
    prompts: &[String],
    images: &[PlannedImage],
    size: (u32, u32),
) -> Result<()> {
    parquet_writer::write(path, &columns(config, prompts, images, size))
}

fn columns(
    config: &GenerateConfig,
    prompts: &[String],
    images: &[PlannedImage],
    (width, height): (u32, u32),
) -> Vec<(&'static str, Column)> {
    let text = |value: &dyn Fn(&PlannedImage) -> String| Column::Text(images.iter().map(value).collect());
    let whole = |value: &dyn Fn(&PlannedImage) -> i64| Column::Whole(images.iter().map(value).collect());
    let same_text = |value: &str| Column::Text(vec![value.to_owned(); images.len()]);
    let same_whole = |value: usize| Column::Whole(vec![value as i64; images.len()]);
    let same_real = |value: f64| Column::Real(vec![value; images.len()]);
    let lora: Vec<String> = config.lora.iter().map(ToString::to_string).collect();
    let precision = match config.precision {
        None | Some(reward::device::Precision::Fp32) => "fp32",
        Some(reward::device::Precision::Bf16) => "bf16",
    };
    vec![
        ("prompt", text(&|image| prompts[image.prompt_index].clone())),
        ("path", text(&PlannedImage::path)),
        ("prompt_index", whole(&|image| image.prompt_index as i64)),
        ("index", whole(&|image| image.index as i64)),
        ("seed", Column::Seeds(images.iter().map(|image| image.seed).collect())),
        ("model", same_text(config.model.as_deref().unwrap_or_default())),
        ("negative_prompt", same_text(&config.negative_prompt)),
        ("steps", same_whole(config.steps)),
        ("guidance_scale", same_real(config.guidance_scale)),
        ("scheduler", same_text(&config.scheduler.to_string())),
        ("eta", same_real(config.eta)),
        ("height", same_whole(height as usize)),
        ("width", same_whole(width as usize)),
        ("precision", same_text(precision)),
        ("lora", same_text(&lora.join(", "))),
        ("lora_scale", same_real(config.lora_scale)),
        ("base_steps", same_whole(config.base_steps)),
    ]
}

#[cfg(test)]
mod tests {
    use parquet::{file::reader::SerializedFileReader, record::RowAccessor};

    use super::*;

    #[test]
    fn the_table_has_a_row_for_every_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.parquet");
        let prompts = ["a red fox".to_owned(), "owl, \"grey\"".to_owned()];
        let images = super::super::plan::all(2, 2, 5);
        write(&path, &GenerateConfig::default(), &prompts, &images, (512, 256)).unwrap();
        let file = fs_err::File::open(&path).unwrap().into_parts().0;
        let rows: Vec<_> = SerializedFileReader::new(file).unwrap().into_iter().map(Result::unwrap).collect();
        let names: Vec<_> = rows[0].get_column_iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..5], ["prompt", "path", "prompt_index", "index", "seed"]);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| {
                (row.get_string(0).unwrap().as_str(), row.get_string(1).unwrap().as_str(), row.get_long(4).unwrap())
            })
            .collect();
        let wanted = [
            ("a red fox", "images/00000-0.png", 5),
            ("a red fox", "images/00000-1.png", 6),
            ("owl, \"grey\"", "images/00001-0.png", 5),
            ("owl, \"grey\"", "images/00001-1.png", 6),
        ];
        assert_eq!(seen, wanted);
        assert_eq!((rows[3].get_long(11).unwrap(), rows[3].get_long(12).unwrap()), (256, 512), "height, width");
    }

    #[test]
    fn a_seed_is_signed_where_it_fits_and_unsigned_where_it_must() {
        let folder = tempfile::tempdir().unwrap();
        for (seed, wanted) in [(i64::MAX as u64 - 1, "Int64"), (u64::MAX - 1, "UInt64")] {
            let path = folder.path().join("images.parquet");
            let images = super::super::plan::all(1, 2, seed);
            write(&path, &GenerateConfig::default(), &["a".to_owned()], &images, (8, 8)).unwrap();
            let file = fs_err::File::open(&path).unwrap().into_parts().0;
            let table = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            assert_eq!(table.schema().field_with_name("seed").unwrap().data_type().to_string(), wanted);
            for image in &images {
                fs_err::create_dir_all(folder.path().join("images")).unwrap();
                fs_err::write(folder.path().join(image.path()), "").unwrap();
            }
            let set = reward::data::image_set::ImageSet::read(&path, None).unwrap();
            assert_eq!(set.rows.iter().map(|row| row.seed).collect::<Vec<_>>(), [seed, seed + 1]);
        }
    }
}
