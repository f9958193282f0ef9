//! Element types: libtorch's names and the wire's, both ways.
//!
//! Never by way of `tch::kind::Element`, which takes `half::bf16` for `Half`.

use connect_core::DType;
use tch::Kind;

/// The wire's type for a libtorch kind; `None` for quantised kinds and the complex ones without a name there.
pub fn dtype_of(kind: Kind) -> Option<DType> {
    Some(match kind {
        Kind::Uint8 => DType::U8,
        Kind::Int8 => DType::I8,
        Kind::Int16 => DType::I16,
        Kind::Int => DType::I32,
        Kind::Int64 => DType::I64,
        Kind::Half => DType::F16,
        Kind::BFloat16 => DType::BF16,
        Kind::Float => DType::F32,
        Kind::Double => DType::F64,
        Kind::Bool => DType::BOOL,
        Kind::ComplexFloat => DType::C64,
        Kind::Float8e5m2 => DType::F8_E5M2,
        Kind::Float8e4m3fn => DType::F8_E4M3,
        Kind::Float8e5m2fnuz => DType::F8_E5M2FNUZ,
        Kind::Float8e4m3fnuz => DType::F8_E4M3FNUZ,
        Kind::ComplexHalf | Kind::ComplexDouble | Kind::QInt8 | Kind::QUInt8 | Kind::QInt32 => return None,
    })
}

/// libtorch's kind for one of the wire's types; `None` where tch has none (`U16`, `U32`, `U64`, the types of
/// less than a byte, `F8_E8M0`).
pub fn kind_of(dtype: DType) -> Option<Kind> {
    Some(match dtype {
        DType::U8 => Kind::Uint8,
        DType::I8 => Kind::Int8,
        DType::I16 => Kind::Int16,
        DType::I32 => Kind::Int,
        DType::I64 => Kind::Int64,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::BOOL => Kind::Bool,
        DType::C64 => Kind::ComplexFloat,
        DType::F8_E5M2 => Kind::Float8e5m2,
        DType::F8_E4M3 => Kind::Float8e4m3fn,
        DType::F8_E5M2FNUZ => Kind::Float8e5m2fnuz,
        DType::F8_E4M3FNUZ => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}
