//! Element types: [`DType`], named as safetensors names them, with torch's names beside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The type of a tensor's elements.
///
/// Variants are spelled as in safetensors, which is also how the type prints, parses and serialises.
///
/// ```
/// use connect_core::DType;
///
/// let dtype: DType = "BF16".parse()?;
/// assert_eq!(dtype, DType::from_torch_name("torch.bfloat16")?);
/// assert_eq!(dtype.torch_name(), Some("bfloat16"));
/// assert_eq!(dtype.byte_len(10), Some(20));
/// # Ok::<(), connect_core::ParseDTypeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    non_camel_case_types,
    reason = "the names are those of safetensors, so that nothing needs translating"
)]
#[non_exhaustive]
pub enum DType {
    /// A truth value in one byte.
    BOOL,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (torch `float8_e4m3fn`).
    F8_E4M3,
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    F8_E5M2,
    /// As `F8_E4M3`, with one zero and one NaN.
    F8_E4M3FNUZ,
    /// As `F8_E5M2`, with one zero and one NaN.
    F8_E5M2FNUZ,
    /// An 8-bit exponent alone: the scale of a microscaling block.
    F8_E8M0,
    /// 6-bit float, 2 exponent and 3 mantissa bits.
    F6_E2M3,
    /// 6-bit float, 3 exponent and 2 mantissa bits.
    F6_E3M2,
    /// 4-bit float, 2 exponent bits and 1 mantissa bit; two to a byte.
    F4,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// Brain float: the upper half of an `F32`.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// IEEE double precision.
    F64,
    /// A complex number of two `F32`.
    C64,
}

impl DType {
    /// Every type, in order of size.
    pub const ALL: &'static [Self] = &[
        Self::F4,
        Self::F6_E2M3,
        Self::F6_E3M2,
        Self::BOOL,
        Self::U8,
        Self::I8,
        Self::F8_E4M3,
        Self::F8_E5M2,
        Self::F8_E4M3FNUZ,
        Self::F8_E5M2FNUZ,
        Self::F8_E8M0,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::I64,
        Self::U64,
        Self::F64,
        Self::C64,
    ];

    /// Bits of one element. Not always a multiple of eight.
    pub const fn bits(self) -> u32 {
        match self {
            Self::F4 => 4,
            Self::F6_E2M3 | Self::F6_E3M2 => 6,
            Self::BOOL
            | Self::U8
            | Self::I8
            | Self::F8_E4M3
            | Self::F8_E5M2
            | Self::F8_E4M3FNUZ
            | Self::F8_E5M2FNUZ
            | Self::F8_E8M0 => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::I64 | Self::U64 | Self::F64 | Self::C64 => 64,
        }
    }

    /// Bytes of `elements` packed elements, the last byte filled up; `None` when 64 bits can't count them.
    pub const fn byte_len(self, elements: u64) -> Option<u64> {
        // In 128 bits, because a count in bits overflows 64 bits before the count in bytes does.
        let bytes = (elements as u128 * self.bits() as u128).div_ceil(8);
        if bytes <= u64::MAX as u128 { Some(bytes as u64) } else { None }
    }

    /// The safetensors name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BOOL => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8_E4M3 => "F8_E4M3",
            Self::F8_E5M2 => "F8_E5M2",
            Self::F8_E4M3FNUZ => "F8_E4M3FNUZ",
            Self::F8_E5M2FNUZ => "F8_E5M2FNUZ",
            Self::F8_E8M0 => "F8_E8M0",
            Self::F6_E2M3 => "F6_E2M3",
            Self::F6_E3M2 => "F6_E3M2",
            Self::F4 => "F4",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::F64 => "F64",
            Self::C64 => "C64",
        }
    }

    /// The torch name, without `torch.`; `None` where torch has no type of the same elements.
    ///
    /// That includes [`F4`](Self::F4): torch's `float4_e2m1fn_x2` is a pair of them, so its shapes count
    /// bytes, and the same shape would mean twice the memory here.
    pub const fn torch_name(self) -> Option<&'static str> {
        Some(match self {
            Self::BOOL => "bool",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::F8_E4M3 => "float8_e4m3fn",
            Self::F8_E5M2 => "float8_e5m2",
            Self::F8_E4M3FNUZ => "float8_e4m3fnuz",
            Self::F8_E5M2FNUZ => "float8_e5m2fnuz",
            Self::F8_E8M0 => "float8_e8m0fnu",
            Self::F6_E2M3 | Self::F6_E3M2 | Self::F4 => return None,
            Self::I16 => "int16",
            Self::U16 => "uint16",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::F32 => "float32",
            Self::I64 => "int64",
            Self::U64 => "uint64",
            Self::F64 => "float64",
            Self::C64 => "complex64",
        })
    }

    /// The type with this torch name: `bfloat16` or `torch.bfloat16`, as torch itself prints it.
    ///
    /// # Errors
    /// Any other name. Nothing is assumed for a type this library does not know: a wrong guess would be
    /// wrong numbers.
    pub fn from_torch_name(name: &str) -> Result<Self, ParseDTypeError> {
        let bare = name.strip_prefix("torch.").unwrap_or(name);
        Self::find(|dtype| dtype.torch_name() == Some(bare))
            .ok_or_else(|| ParseDTypeError::new(name, "torch"))
    }

    fn find(is_it: impl Fn(Self) -> bool) -> Option<Self> {
        Self::ALL.iter().copied().find(|&dtype| is_it(dtype))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no element type this library knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {vocabulary} dtype {name:?}")]
pub struct ParseDTypeError {
    name: String,
    vocabulary: &'static str,
}

impl ParseDTypeError {
    fn new(name: &str, vocabulary: &'static str) -> Self {
        // A name from a peer ends up in logs, so its length is bounded here.
        Self { name: name.chars().take(32).collect(), vocabulary }
    }
}

impl FromStr for DType {
    type Err = ParseDTypeError;

    /// Safetensors names, exactly.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::find(|dtype| dtype.name() == name).ok_or_else(|| ParseDTypeError::new(name, "safetensors"))
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = DType;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a safetensors dtype name")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<DType, E> {
                name.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses_back_from_each_of_its_names() {
        for &dtype in DType::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            let json = serde_json::to_string(&dtype).unwrap();
            assert_eq!(json, format!("\"{dtype}\""));
            assert_eq!(serde_json::from_str::<DType>(&json).unwrap(), dtype);
            if let Some(torch) = dtype.torch_name() {
                assert_eq!(DType::from_torch_name(torch), Ok(dtype));
                assert_eq!(DType::from_torch_name(&format!("torch.{torch}")), Ok(dtype));
            }
        }
    }

    #[test]
    fn the_list_of_all_types_is_complete_and_free_of_repeats() {
        // `C64` is the last variant.
        assert_eq!(DType::ALL.len(), DType::C64 as usize + 1);
        let names: std::collections::HashSet<_> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
        assert_eq!(names.len(), DType::ALL.len());
        assert!(DType::ALL.is_sorted_by_key(|dtype| dtype.bits()));
    }

    #[test]
    fn an_unknown_name_is_an_error_and_never_float32() {
        for name in
            ["", "float", "FLOAT32", "float32 ", "torch.torch.float32", "float4_e2m1fn_x2", "complex128"]
        {
            assert!(DType::from_torch_name(name).is_err(), "{name:?}");
        }
        for name in ["", "f32", "float32", "F32 ", "F128"] {
            assert!(name.parse::<DType>().is_err(), "{name:?}");
        }
        let error = DType::from_torch_name(&"x".repeat(1 << 20)).unwrap_err();
        assert!(error.to_string().len() < 100);
    }

    #[test]
    fn lengths_round_up_to_whole_bytes_and_never_wrap() {
        assert_eq!(DType::F4.byte_len(3), Some(2));
        assert_eq!(DType::F6_E2M3.byte_len(4), Some(3));
        assert_eq!(DType::F6_E2M3.byte_len(5), Some(4));
        assert_eq!(DType::F32.byte_len(0), Some(0));
        assert_eq!(DType::F4.byte_len(u64::MAX), Some(1 << 63));
        assert_eq!(DType::U8.byte_len(u64::MAX), Some(u64::MAX));
        assert_eq!(DType::BF16.byte_len(1 << 63), None);
    }
}
