//! Safetensors files, written and read without this project's own code.

use serde_json::{Map, Value, json};

/// The bytes of a file with these tensors: name, element type, shape, little-endian values.
pub(crate) fn file(tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, kind, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(name.clone(), json!({"dtype": kind, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Shape and bytes of one tensor of a file.
pub(crate) fn tensor<'a>(file: &'a [u8], name: &str) -> (Vec<usize>, &'a [u8]) {
    let (length, rest) = file.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: Value = serde_json::from_slice(header).unwrap();
    let numbers = |key: &str| -> Vec<usize> {
        let list = header[name][key].as_array().unwrap();
        list.iter().map(|number| number.as_u64().unwrap() as usize).collect()
    };
    let [start, end] = numbers("data_offsets")[..] else { panic!("{name}") };
    (numbers("shape"), &data[start..end])
}

/// Little-endian fp32 values.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}
