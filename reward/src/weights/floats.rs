//! Element types of weights: what their bytes are in fp32, and whether all of them are finite.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

/// Bytes of an element that can be read; `None` for what is no float.
pub(super) fn size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some(1),
        _ => None,
    }
}

/// Whether `dtype` is an fp8, which is read as fp32.
pub(super) fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

fn parse<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Appends little-endian elements to `values` as fp32. Every fp8 is exact there. Other types than [`size`] knows add nothing.
pub(super) fn append(bytes: &[u8], dtype: Dtype, values: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => values.extend(parse(bytes).map(f32::from_le_bytes)),
        Dtype::F64 => values.extend(parse(bytes).map(|chunk| f64::from_le_bytes(chunk) as f32)),
        Dtype::F16 => values.extend(parse(bytes).map(f16::from_le_bytes).collect::<Vec<_>>().to_f32_vec()),
        Dtype::BF16 => values.extend(parse(bytes).map(bf16::from_le_bytes).collect::<Vec<_>>().to_f32_vec()),
        Dtype::F8_E4M3 => values.extend(bytes.iter().map(|code| e4m3(*code))),
        Dtype::F8_E5M2 => values.extend(bytes.iter().map(|code| e5m2(*code))),
        _ => {}
    }
}

/// Where the first element is that is not finite in fp32; in a loop without branches, so that it costs no time beside reading.
pub(super) fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    // An exponent of ones and nothing else is infinity or NaN: adding its lowest bit carries into the sign.
    let any = match dtype {
        Dtype::F32 => {
            parse(bytes).fold(0, |any, chunk| any | ((u32::from_le_bytes(chunk) & 0x7f80_0000) + 0x0080_0000)) >> 31
                != 0
        }
        Dtype::F16 => {
            parse(bytes).fold(0, |any, chunk| any | ((u16::from_le_bytes(chunk) & 0x7c00) + 0x0400)) >> 15 != 0
        }
        Dtype::BF16 => {
            parse(bytes).fold(0, |any, chunk| any | ((u16::from_le_bytes(chunk) & 0x7f80) + 0x0080)) >> 15 != 0
        }
        // Beyond fp32 is infinite in fp32.
        Dtype::F64 => parse(bytes).fold(false, |any, chunk| any | !(f64::from_le_bytes(chunk) as f32).is_finite()),
        Dtype::F8_E4M3 => bytes.iter().fold(false, |any, code| any | (code & 0x7f == 0x7f)),
        Dtype::F8_E5M2 => bytes.iter().fold(false, |any, code| any | (code & 0x7c == 0x7c)),
        _ => false,
    };
    any.then(|| {
        let mut values = Vec::new();
        append(bytes, dtype, &mut values);
        values.iter().position(|value| !value.is_finite()).unwrap_or(0)
    })
}

/// 4 bits of exponent with bias 7, 3 of mantissa, no infinity (the `fn` of PyTorch's name).
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// The upper byte of an fp16.
fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Every code of both types as torch 2.11 converts it: `tests/golden/weights.py`.
    #[test]
    fn every_fp8_code_is_what_torch_reads() {
        let golden =
            fs_err::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/weights/fp8.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        for (name, dtype) in [("e4m3", Dtype::F8_E4M3), ("e5m2", Dtype::F8_E5M2)] {
            let [codes, values] = ["", "_as_float"].map(|end| golden.tensor(&format!("{name}{end}")).unwrap());
            assert_eq!((codes.dtype(), codes.shape()), (dtype, &[256][..]));
            let wanted: Vec<f32> = parse(values.data()).map(f32::from_le_bytes).collect();
            let mut found = Vec::new();
            append(codes.data(), dtype, &mut found);
            for (code, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{name} {code:#x}");
                let not_finite = first_not_finite(&[code as u8], dtype).is_some();
                assert_eq!(not_finite, !wanted.is_finite(), "{name} {code:#x}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_found_in_every_type() {
        let bytes = |values: &[f64], dtype: Dtype| -> Vec<u8> {
            let of = |value: &f64| match dtype {
                Dtype::F64 => value.to_le_bytes().to_vec(),
                Dtype::F32 => (*value as f32).to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f64(*value).to_le_bytes().to_vec(),
                _ => bf16::from_f64(*value).to_le_bytes().to_vec(),
            };
            values.iter().flat_map(of).collect()
        };
        for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            assert_eq!(first_not_finite(&bytes(&[0.0, -0.0, 1e-8, 65504.0, -3e4], dtype), dtype), None, "{dtype:?}");
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(first_not_finite(&bytes(&[1.0, 2.0, bad, 3.0], dtype), dtype), Some(2), "{dtype:?}");
            }
        }
        assert_eq!(first_not_finite(&bytes(&[1.0, 1e300], Dtype::F64), Dtype::F64), Some(1));
    }
}
