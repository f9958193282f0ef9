//! One tensor of an envelope.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MetadataError;
use super::digest::{self, Digest, DigestMismatch};
use super::json::{self, List};
use crate::dtype::{DType, ParseDTypeError};

/// Longest tensor name. Checkpoints have names of a hundred characters at most.
pub const MAX_TENSOR_NAME_BYTES: usize = 4 << 10;

/// Most dimensions of a tensor; as many as NumPy had for most of its life, and more than any model uses.
pub const MAX_DIMS: usize = 32;

/// A tensor: what it is called, what it is made of, and which descriptors hold its bytes.
///
/// Elements are packed in row-major order; over several descriptors, one after the other. A tensor without
/// elements has no descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct TensorSpec {
    /// Its name, unique in its envelope.
    #[serde(rename = "field_name")]
    pub name: String,
    /// The type of its elements.
    #[serde(rename = "dtype_str", serialize_with = "wire_name")]
    pub dtype: DType,
    /// Its dimensions, outermost first, in elements. A scalar has none.
    pub shape: Vec<u64>,
    /// The first of its descriptors.
    pub first_descriptor: usize,
    /// How many descriptors it has.
    pub descriptor_count: usize,
    /// Its length in bytes.
    pub byte_len: u64,
    /// What its bytes hash to, if the sender wants them checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl TensorSpec {
    /// A tensor that lies in these descriptors of a document. Its length follows from dtype and shape.
    ///
    /// # Errors
    /// A name longer than [`MAX_TENSOR_NAME_BYTES`], more than [`MAX_DIMS`] dimensions, more bytes than 64
    /// bits can count, or descriptors for a tensor without elements.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: impl Into<Vec<u64>>,
        descriptors: Range<usize>,
    ) -> Result<Self, MetadataError> {
        let mut spec = Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
            first_descriptor: descriptors.start,
            descriptor_count: descriptors.len(),
            byte_len: 0,
            digest: None,
        };
        spec.byte_len = spec.implied_len()?;
        spec.check()?;
        Ok(spec)
    }

    /// The same with a digest of its bytes, for receivers to check.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Checks what arrived, in pieces cut anywhere, against the digest. A tensor without one passes: whoever
    /// needs digests asks [`TensorEnvelope::require_digests`](super::TensorEnvelope::require_digests) before
    /// the transfer.
    ///
    /// # Errors
    /// [`DigestMismatch`]. Use none of the bytes; have them sent again.
    pub fn check_digest<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), DigestMismatch> {
        let Some(expected) = self.digest else { return Ok(()) };
        let found = Digest::of_pieces(pieces);
        if found != expected {
            return Err(DigestMismatch { name: json::quoted(&self.name), expected, found });
        }
        Ok(())
    }

    /// How many elements it has; `u64::MAX` for a shape whose product 64 bits can't hold, which no envelope
    /// contains.
    pub fn elements(&self) -> u64 {
        elements(&self.shape).unwrap_or(u64::MAX)
    }

    /// Its descriptors, as indices into the document's list.
    pub fn descriptors(&self) -> Range<usize> {
        self.first_descriptor..self.first_descriptor.saturating_add(self.descriptor_count)
    }

    /// What must hold for the tensor by itself. The fields are public, so an envelope asks again.
    pub(super) fn check(&self) -> Result<(), MetadataError> {
        if self.name.len() > MAX_TENSOR_NAME_BYTES {
            let len = self.name.len();
            return Err(self.error(format!("field_name has {len} bytes, more than {MAX_TENSOR_NAME_BYTES}")));
        }
        let (implied, stated) = (self.implied_len()?, self.byte_len);
        if implied != stated {
            let dtype = self.dtype;
            return Err(
                self.error(format!("byte_len is {stated}, but {dtype} of its shape has {implied} bytes"))
            );
        }
        if stated == 0 && self.descriptor_count != 0 {
            let count = self.descriptor_count;
            return Err(self.error(format!("it has no elements, but descriptor_count is {count}")));
        }
        Ok(())
    }

    fn implied_len(&self) -> Result<u64, MetadataError> {
        if self.shape.len() > MAX_DIMS {
            return Err(too_many_dims(&self.name, self.shape.len()));
        }
        let len = elements(&self.shape).and_then(|elements| self.dtype.byte_len(elements));
        len.ok_or_else(|| self.error("its shape has 2^64 bytes or more".to_owned()))
    }

    pub(super) fn error(&self, reason: String) -> MetadataError {
        error(&self.name, reason)
    }
}

/// The product of the dimensions; `None` when 64 bits can't hold it.
fn elements(shape: &[u64]) -> Option<u64> {
    // Asked first, because the other dimensions of an empty tensor may be as large as they like.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))
}

fn too_many_dims(name: &str, dims: usize) -> MetadataError {
    error(name, format!("its shape has {dims} dimensions, more than {MAX_DIMS}"))
}

fn error(name: &str, reason: String) -> MetadataError {
    MetadataError::Tensor { name: json::quoted(name), reason }
}

/// Writes torch's name, which Python peers look up in torch; where it has none, that of safetensors.
fn wire_name<S: Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.torch_name().unwrap_or(dtype.name()))
}

/// Reads either name; no name is both.
pub(super) fn parse_wire_name(name: &str) -> Result<DType, ParseDTypeError> {
    DType::from_torch_name(name).or_else(|error| name.parse().map_err(|_| error))
}

/// A tensor as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTensor {
    #[serde(deserialize_with = "field_name")]
    field_name: String,
    #[serde(deserialize_with = "dtype_str")]
    dtype_str: String,
    #[serde(deserialize_with = "shape")]
    shape: List<u64>,
    #[serde(deserialize_with = "first_descriptor")]
    first_descriptor: u64,
    #[serde(deserialize_with = "descriptor_count")]
    descriptor_count: u64,
    #[serde(deserialize_with = "byte_len")]
    byte_len: u64,
    #[serde(default, deserialize_with = "digest::text")]
    digest: Option<String>,
}

impl RawTensor {
    pub(super) fn check(self) -> Result<TensorSpec, MetadataError> {
        let (dtype, shape) = check_type(&self.field_name, &self.dtype_str, self.shape)?;
        let digest = self.digest.map(|text| text.parse()).transpose()?;
        // What does not fit an index is beyond any list's end, where an envelope's check finds it.
        let index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let spec = TensorSpec {
            name: self.field_name,
            dtype,
            shape,
            first_descriptor: index(self.first_descriptor),
            descriptor_count: index(self.descriptor_count),
            byte_len: self.byte_len,
            digest,
        };
        spec.check()?;
        Ok(spec)
    }
}

/// The dtype and shape as they were read, made sure of.
pub(super) fn check_type(
    name: &str,
    dtype: &str,
    shape: List<u64>,
) -> Result<(DType, Vec<u64>), MetadataError> {
    let dtype = parse_wire_name(dtype).map_err(|unknown| error(name, unknown.to_string()))?;
    if shape.count > MAX_DIMS {
        return Err(too_many_dims(name, shape.count));
    }
    Ok((dtype, shape.items))
}

pub(super) fn field_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "field_name")
}

pub(super) fn dtype_str<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "dtype_str")
}

pub(super) fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u64>, D::Error> {
    json::list(deserializer, "shape", MAX_DIMS)
}

fn first_descriptor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "first_descriptor")
}

fn descriptor_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "descriptor_count")
}

fn byte_len<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "byte_len")
}
