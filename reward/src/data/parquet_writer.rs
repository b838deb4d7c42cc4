//! Tables of our own making as parquet: columns of few types, none of which needs arrow.

use std::{path::Path, sync::Arc};

use parquet::{
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::{Error, Result, files::replace_file, seed};

/// The values of a column.
pub enum Column {
    /// Text.
    Text(Vec<String>),
    /// Whole numbers.
    Whole(Vec<i64>),
    /// Seeds: signed where all fit, as most readers expect, else unsigned.
    Seeds(Vec<u64>),
    /// Numbers.
    Real(Vec<f64>),
    /// Numbers, some of which are not there.
    Optional(Vec<Option<f64>>),
}

impl Column {
    /// The column in a schema.
    fn field(&self, name: &str) -> String {
        match self {
            Self::Text(_) => format!("required binary {name} (STRING); "),
            Self::Whole(_) => format!("required int64 {name}; "),
            Self::Seeds(seeds) => {
                format!("required int64 {name}{}; ", seed::parquet_annotation(seeds.iter().copied()))
            }
            Self::Real(_) => format!("required double {name}; "),
            Self::Optional(_) => format!("optional double {name}; "),
        }
    }
}

/// Writes the columns, which are equally long, as `path`, in place of what is there.
///
/// # Errors
/// The disk is full or not writable.
pub fn write(path: &Path, columns: &[(&str, Column)]) -> Result<()> {
    let bytes = encode(columns)
        .map_err(|error| Error::data(format!("{}: cannot be written", path.display())).caused_by(error))?;
    replace_file(path, |partial| Ok(fs_err::write(partial, bytes)?))
}

fn encode(columns: &[(&str, Column)]) -> Result<Vec<u8>, ParquetError> {
    let fields: String = columns.iter().map(|(name, column)| column.field(name)).collect();
    let schema = Arc::new(parse_message_type(&format!("message table {{ {fields}}}"))?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()))?;
    let mut group = file.next_row_group()?;
    for (_, values) in columns {
        // The schema has a column for each.
        let Some(mut column) = group.next_column()? else { break };
        match values {
            Column::Text(values) => {
                let values: Vec<ByteArray> = values.iter().map(|value| value.as_str().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None)?
            }
            Column::Whole(values) => column.typed::<Int64Type>().write_batch(values, None, None)?,
            Column::Seeds(seeds) => {
                // The type says how to read these 64 bits.
                let values: Vec<i64> = seeds.iter().map(|seed| *seed as i64).collect();
                column.typed::<Int64Type>().write_batch(&values, None, None)?
            }
            Column::Real(values) => column.typed::<DoubleType>().write_batch(values, None, None)?,
            Column::Optional(values) => {
                let there: Vec<f64> = values.iter().filter_map(|value| *value).collect();
                let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
                column.typed::<DoubleType>().write_batch(&there, Some(&levels), None)?
            }
        };
        column.close()?;
    }
    group.close()?;
    file.into_inner()
}
