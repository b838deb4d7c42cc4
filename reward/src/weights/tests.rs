//! Archives written here: a CLIP under any wrapper, and files that claim what they do not hold.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use proptest::prelude::*;

use super::{Checkpoint, OpenOptions, file::TensorFile};
use crate::clip::config::ClipConfig;

/// Parameters of a CLIP of a few kilobytes, each with the place of its first element in a storage that all share.
fn tiny() -> Vec<(String, Vec<usize>)> {
    let mut config = ClipConfig::preset("tiny").unwrap();
    (config.vocab_size, config.context_length) = (20, 8);
    (config.image_size, config.patch_size) = (16, 8);
    config.text.layers = 1;
    config.vision = config.text.clone();
    config.parameters()
}

/// A pickle in parts.
#[derive(Clone)]
enum Value {
    Tensor(usize, Vec<usize>),
    Dictionary(Vec<(String, Value)>),
    Number(u8),
    Parameter(Box<Value>),
}

impl Value {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Number(number) => to.extend([b'K', *number]),
            Self::Dictionary(entries) => {
                to.extend(*b"}(");
                for (key, value) in entries {
                    text(key, to);
                    value.write(to);
                }
                to.push(b'u');
            }
            Self::Parameter(data) => {
                to.extend(b"ctorch._utils\n_rebuild_parameter\n(");
                data.write(to);
                to.extend(b"\x88ccollections\nOrderedDict\n)RtR");
            }
            Self::Tensor(offset, shape) => {
                to.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                text("storage", to);
                to.extend(b"ctorch\nFloatStorage\n");
                text("0", to);
                text("cpu", to);
                number(STORAGE, to);
                to.extend(b"tQ");
                number(*offset, to);
                let mut strides: Vec<usize> = vec![1];
                shape
                    .iter()
                    .rev()
                    .for_each(|side| strides.push(strides.last().unwrap().saturating_mul(*side).min(1 << 30)));
                strides.pop();
                strides.reverse();
                for numbers in [shape, &strides] {
                    to.push(b'(');
                    numbers.iter().for_each(|side| number(*side, to));
                    to.push(b't');
                }
                to.extend(b"\x89ccollections\nOrderedDict\n)RtR");
            }
        }
    }
}

fn number(number: usize, to: &mut Vec<u8>) {
    to.push(b'J');
    to.extend((number as i32).to_le_bytes());
}

fn text(text: &str, to: &mut Vec<u8>) {
    to.push(b'X');
    to.extend((text.len() as u32).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Elements of the one storage.
const STORAGE: usize = 20_000;

/// A zip archive as `torch.save` writes it.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..STORAGE).flat_map(|place| (place as f32).to_le_bytes()).collect();
    zip(&[("archive/data.pkl", pickle), ("archive/data/0", &storage)])
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let sizes =
            [[0; 12].as_slice(), &(bytes.len() as u32).to_le_bytes(), &(bytes.len() as u32).to_le_bytes()].concat();
        let names = [(name.len() as u16).to_le_bytes(), [0; 2]].concat();
        directory.extend([b"PK\x01\x02".as_slice(), &[0; 4], &sizes[..], &names[..], &[0; 10]].concat());
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend([b"PK\x03\x04".as_slice(), &[0; 2], &sizes[..], &names[..], name.as_bytes(), bytes].concat());
    }
    let end = [&(entries.len() as u16).to_le_bytes()[..]; 2].concat();
    let place = [(directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes()].concat();
    [file, directory, b"PK\x05\x06\0\0\0\0".to_vec(), end, place, vec![0; 2]].concat()
}

fn pickle(value: &Value) -> Vec<u8> {
    let mut bytes = b"\x80\x02".to_vec();
    value.write(&mut bytes);
    bytes.push(b'.');
    bytes
}

fn open(bytes: &[u8]) -> crate::Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.pt");
    fs_err::write(&path, bytes).unwrap();
    Checkpoint::open(path.to_str().unwrap(), OpenOptions::default())
}

#[derive(Debug, Clone)]
enum Wrapper {
    Prefix(String),
    Inner(&'static str),
    Dictionary(String),
    Stray,
}

fn wrapper() -> impl Strategy<Value = Wrapper> {
    let name = "[a-z][a-z_]{0,8}|model|module|ema|0";
    prop_oneof![
        name.prop_map(Wrapper::Prefix),
        name.prop_map(Wrapper::Dictionary),
        prop::sample::select(vec!["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
            .prop_map(Wrapper::Inner),
        Just(Wrapper::Stray),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three wrappers of any kind, in any order.
    #[test]
    fn any_wrapper_loads_to_the_same_tensors(wrappers in prop::collection::vec(wrapper(), 0..=3), parameters: bool) {
        let mut entries: Vec<(String, Value)> = Vec::new();
        for (place, (name, shape)) in tiny().into_iter().enumerate() {
            let tensor = Value::Tensor(place, shape);
            entries.push((name, if parameters { Value::Parameter(Box::new(tensor)) } else { tensor }));
        }
        for wrapper in wrappers {
            let is_model = |name: &str| !name.starts_with("stray");
            match wrapper {
                Wrapper::Prefix(prefix) => entries.iter_mut().for_each(|(name, _)| *name = format!("{prefix}.{name}")),
                Wrapper::Inner(part) => {
                    for (name, _) in entries.iter_mut().filter(|(name, _)| is_model(name)) {
                        let (first, rest) = name.split_once('.').unwrap_or((name, ""));
                        // Between the parts of a key, or at its beginning.
                        *name = match rest.is_empty() {
                            true => format!("{part}.{first}"),
                            false => format!("{part}.{first}.{part}.{rest}"),
                        };
                    }
                }
                Wrapper::Dictionary(key) => entries = vec![(key, Value::Dictionary(entries))],
                Wrapper::Stray => {
                    entries = vec![
                        ("stray_loss".to_owned(), Value::Tensor(3, vec![])),
                        ("stray_epoch".to_owned(), Value::Number(3)),
                        ("state".to_owned(), Value::Dictionary(entries)),
                        ("stray_state".to_owned(), Value::Dictionary(vec![("exp_avg".to_owned(), Value::Tensor(0, vec![2]))])),
                    ];
                }
            }
        }
        let checkpoint = open(&archive(&pickle(&Value::Dictionary(entries)))).unwrap();
        for (place, (name, shape)) in tiny().into_iter().enumerate() {
            let values = checkpoint.read(&name, &shape).unwrap();
            prop_assert_eq!((values[0], values.len()), (place as f32, shape.iter().product()));
        }
    }
}

/// What a file claims is held against what it is.
#[test]
fn archives_that_claim_too_much_are_refused() {
    let (plain, path) = (pickle(&Value::Tensor(0, vec![4])), "archive/data.pkl");
    let named = |shape: Vec<usize>, offset: usize| {
        archive(&pickle(&Value::Dictionary(vec![("w".to_owned(), Value::Tensor(offset, shape))])))
    };
    let mut over = zip(&[(path, &plain), ("archive/data/0", &[0; 40])]);
    let second = over.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    over[second + 42..second + 46].fill(0);
    let mut beyond = zip(&[(path, &plain)]);
    let first = beyond.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    beyond[first + 20..first + 28].fill(0x7f);
    let mut squeezed = zip(&[(path, &plain)]);
    let first = squeezed.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    squeezed[first + 10] = 8;
    for (file, wanted) in [
        (named(vec![STORAGE + 1], 0), "does not fit its storage of 80000 bytes"),
        (named(vec![2], STORAGE - 1), "does not fit its storage"),
        (named(vec![1 << 30, 1 << 30, 1 << 30], 0), "does not fit its storage"),
        (
            zip(&[(path, &pickle(&Value::Dictionary(vec![("w".to_owned(), Value::Tensor(0, vec![1]))])))]),
            "no part `archive/data/0`",
        ),
        (over, "overlap"),
        (beyond, "ends beyond the file"),
        (squeezed, "is compressed"),
        (zip(&[("model/weights.safetensors", b"")]), "a zip file that is no PyTorch archive"),
    ] {
        let error = open(&file).map(|_| ()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("clip.pt: ") && message.contains(wanted) && !message.contains('\n'), "{message}");
        assert!(error.hint_text().is_some(), "{message}");
    }
}

/// A dictionary that holds itself and its copies: without care, without end.
#[test]
fn objects_that_are_shared_or_in_a_cycle_are_looked_into_once() {
    let mut bytes = b"\x80\x02}q\x00(".to_vec();
    text("self", &mut bytes);
    bytes.extend(b"h\x00");
    text("w", &mut bytes);
    Value::Tensor(0, vec![2]).write(&mut bytes);
    // Modules within modules, twice each.
    text("deep", &mut bytes);
    bytes.extend(b"cx\nM\n)\x81}b");
    for level in 1..=60_u8 {
        bytes.extend([b'q', level]);
        bytes.extend(b"0cx\nM\n)\x81}");
        text("_modules", &mut bytes);
        bytes.extend(b"}(");
        for key in ["a", "b"] {
            text(key, &mut bytes);
            bytes.extend([b'h', level]);
        }
        bytes.extend(b"usb");
    }
    bytes.extend(b"u.");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.pt");
    fs_err::write(&path, archive(&bytes)).unwrap();
    let error = TensorFile::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("more tensors, or longer names, than any checkpoint has"), "{error}");
}

/// Files that become shorter while they are read: an error each time, whichever format, never a signal.
#[test]
fn a_file_that_is_shortened_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let entries = (0..400).map(|place| (format!("w{place}"), Value::Tensor(0, vec![STORAGE]))).collect();
    let pickled = archive(&pickle(&Value::Dictionary(entries)));
    let header = format!(r#"{{"w0":{{"dtype":"F32","shape":[{STORAGE}],"data_offsets":[0,{}]}}}}"#, 4 * STORAGE);
    let plain = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; 4 * STORAGE]].concat();
    for (name, bytes) in [("w.pt", pickled), ("w.safetensors", plain)] {
        let path = folder.path().join(name);
        for _ in 0..6 {
            fs_err::write(&path, &bytes).unwrap();
            let file = TensorFile::open(&path).unwrap();
            let stop = AtomicBool::new(false);
            let error = std::thread::scope(|scope| {
                let read = scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for name in file.shapes().keys() {
                            file.read(name)?;
                        }
                    }
                    Ok(())
                });
                std::thread::sleep(std::time::Duration::from_millis(5));
                shorten(&path, bytes.len().div_euclid(2));
                let failed = || std::time::Duration::from_secs(20);
                let begun = std::time::Instant::now();
                while !read.is_finished() && begun.elapsed() < failed() {
                    std::thread::yield_now();
                }
                stop.store(true, Ordering::Relaxed);
                read.join().unwrap().map(|()| "it was read").unwrap_err()
            });
            let error: crate::Error = error;
            assert!(error.to_string().contains(&format!("{name}: had {} bytes", bytes.len())), "{error}");
        }
    }
}

fn shorten(path: &Path, length: usize) {
    fs_err::OpenOptions::new().write(true).open(path).unwrap().set_len(length as u64).unwrap();
}
