//! Element types: Candle's names and the wire's, both ways.

use candle_core::DType as CandleDType;
use connect_core::DType;

/// The wire's type for a Candle type; `None` for one that Candle added after this library was written.
///
/// ```
/// assert_eq!(connect_candle::dtype_of(candle_core::DType::BF16), Some(connect_core::DType::BF16));
/// ```
pub fn dtype_of(dtype: CandleDType) -> Option<DType> {
    Some(match dtype {
        CandleDType::U8 => DType::U8,
        CandleDType::U32 => DType::U32,
        CandleDType::I16 => DType::I16,
        CandleDType::I32 => DType::I32,
        CandleDType::I64 => DType::I64,
        CandleDType::BF16 => DType::BF16,
        CandleDType::F16 => DType::F16,
        CandleDType::F32 => DType::F32,
        CandleDType::F64 => DType::F64,
        CandleDType::F8E4M3 => DType::F8_E4M3,
        CandleDType::F6E2M3 => DType::F6_E2M3,
        CandleDType::F6E3M2 => DType::F6_E3M2,
        CandleDType::F4 => DType::F4,
        CandleDType::F8E8M0 => DType::F8_E8M0,
        _ => return None,
    })
}

/// Candle's type for one of the wire's; `None` where Candle has none (`I8`, `U16`, `U64`, `C64`, `F8_E5M2`,
/// the FNUZ types). A `BOOL` tensor becomes `U8`, which is how Candle itself holds truth values.
pub fn candle_dtype(dtype: DType) -> Option<CandleDType> {
    Some(match dtype {
        DType::U8 | DType::BOOL => CandleDType::U8,
        DType::U32 => CandleDType::U32,
        DType::I16 => CandleDType::I16,
        DType::I32 => CandleDType::I32,
        DType::I64 => CandleDType::I64,
        DType::BF16 => CandleDType::BF16,
        DType::F16 => CandleDType::F16,
        DType::F32 => CandleDType::F32,
        DType::F64 => CandleDType::F64,
        DType::F8_E4M3 => CandleDType::F8E4M3,
        DType::F6_E2M3 => CandleDType::F6E2M3,
        DType::F6_E3M2 => CandleDType::F6E3M2,
        DType::F4 => CandleDType::F4,
        DType::F8_E8M0 => CandleDType::F8E8M0,
        _ => return None,
    })
}

/// Whether Candle holds the type as opaque bytes, which it can't slice or compute with.
pub(crate) fn is_opaque(dtype: CandleDType) -> bool {
    matches!(dtype, CandleDType::F4 | CandleDType::F6E2M3 | CandleDType::F6E3M2 | CandleDType::F8E8M0)
}

#[cfg(test)]
pub(crate) const ALL: [CandleDType; 14] = [
    CandleDType::U8,
    CandleDType::U32,
    CandleDType::I16,
    CandleDType::I32,
    CandleDType::I64,
    CandleDType::BF16,
    CandleDType::F16,
    CandleDType::F32,
    CandleDType::F64,
    CandleDType::F8E4M3,
    CandleDType::F6E2M3,
    CandleDType::F6E3M2,
    CandleDType::F4,
    CandleDType::F8E8M0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candle_type_survives_the_way_there_and_back() {
        for dtype in ALL {
            let wire = dtype_of(dtype).unwrap();
            assert_eq!(candle_dtype(wire), Some(dtype));
            if !is_opaque(dtype) {
                assert_eq!(wire.bits() as usize, 8 * dtype.size_in_bytes(), "{dtype:?}");
            }
        }
    }

    #[test]
    fn what_candle_lacks_is_refused_not_guessed() {
        for dtype in [DType::I8, DType::U16, DType::U64, DType::C64, DType::F8_E5M2, DType::F8_E4M3FNUZ] {
            assert_eq!(candle_dtype(dtype), None);
        }
    }
}
