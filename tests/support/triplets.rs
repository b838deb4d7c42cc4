//! Parquet files of triplets, written and read.

use std::{path::Path, sync::Arc};

use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, reader::SerializedFileReader, writer::SerializedFileWriter},
    record::RowAccessor,
    schema::parser::parse_message_type,
};

/// Prompt, path of the positive, path of the negative.
pub(crate) type Row = [String; 3];

pub(crate) fn write(path: &Path, rows: &[Row]) {
    let columns = "required binary prompt (UTF8); required binary pos_path (UTF8); required binary neg_path (UTF8);";
    let schema = Arc::new(parse_message_type(&format!("message triplets {{ {columns} }}")).unwrap());
    let file = fs_err::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for index in 0..3 {
        let values: Vec<ByteArray> = rows.iter().map(|row| row[index].as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// The first three columns, which are strings.
pub(crate) fn read(path: &Path) -> Vec<Row> {
    let file = fs_err::File::open(path).unwrap().into_parts().0;
    let rows = SerializedFileReader::new(file).unwrap().into_iter().map(Result::unwrap);
    rows.map(|row| std::array::from_fn(|column| row.get_string(column).unwrap().clone())).collect()
}
