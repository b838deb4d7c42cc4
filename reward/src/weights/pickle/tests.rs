//! Pickles that grow, nest or claim without bound.

use super::*;

fn refused(pickle: &[u8]) -> String {
    Objects::read(pickle).map(|objects| objects.all().len()).unwrap_err()
}

/// 30 tuples, each of two of the one before: 2³⁰ objects where they are copied.
#[test]
fn what_is_shared_costs_nothing() {
    let mut bytes = b"\x80\x02)q\x00".to_vec();
    for level in 0..30 {
        bytes.extend([b'h', level, b'h', level, 0x86, b'q', level + 1, b'0']);
    }
    bytes.extend(b"h\x1e.");
    let objects = Objects::read(&bytes).unwrap();
    assert_eq!(objects.all().len(), 32);
    assert_eq!(objects.sequence(objects.root).len(), 2);
    let text = [b"X\x08\x00\x00\x00aaaaaaaaq\x00".to_vec(), b"h\x00".repeat(1000), b"\x85.".to_vec()].concat();
    assert_eq!(Objects::read(&text).unwrap().all().len(), 3);
}

/// Reading, looking and dropping are loops.
#[test]
fn no_depth_overflows_the_stack() {
    let nested = [b")".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat();
    assert_eq!(Objects::read(&nested).unwrap().all().len(), 1_000_002);
    let marks = [b"(".repeat(1_000_000), b"t".repeat(1_000_000), b".".to_vec()].concat();
    assert_eq!(Objects::read(&marks).unwrap().all().len(), 1_000_001);
}

#[test]
fn numbers_of_a_pickle_are_checked_before_anything_is_taken() {
    for (pickle, wanted) in [
        (&b"\x8b\xff\xff\xff\x7f\x01"[..], "byte 0 of its pickle: it ends too soon"),
        (b"\x8d\0\0\0\0\0\0\0\x10abc", "it ends too soon"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc", "it ends too soon"),
        (b"X\xff\xff\xff\xffabc", "it ends too soon"),
        (b"h\x07.", "object 7 is used before it is there"),
        (b"K\x01\x86.", "it takes what is not there"),
        (b"(\x85.", "it takes what is not there"),
        (b"t.", "it takes what is not there"),
        (b".", "it takes what is not there"),
        (b"\xff", "0xff is no operation that PyTorch writes"),
        (b"cos", "it ends too soon"),
        (b"", "byte 0 of its pickle: it ends too soon"),
    ] {
        assert!(refused(pickle).contains(wanted), "{}: {}", pickle.escape_ascii(), refused(pickle));
    }
    let many = b")0".repeat(MAX_OBJECTS + 1);
    assert!(refused(&many).contains("more than 2000000 objects"));
}

#[test]
fn whole_numbers_of_every_length() {
    for (pickle, wanted) in [
        (&b"K\xff."[..], Some(255)),
        (b"M\x00\x02.", Some(512)),
        (b"J\xff\xff\xff\xff.", None),
        (b"\x8a\x00.", Some(0)),
        (b"\x8a\x02\x00\x01.", Some(256)),
        (b"\x8a\x01\xff.", None),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01.", None),
        (b"N.", None),
    ] {
        let objects = Objects::read(pickle).unwrap();
        assert_eq!(objects.count(objects.root), wanted, "{}", pickle.escape_ascii());
    }
}
