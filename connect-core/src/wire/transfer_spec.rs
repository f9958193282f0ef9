//! The single-tensor document of Dynamo's Python workers, read as an envelope.

use serde::Deserialize;

use super::envelope::MAX_ENVELOPE_BYTES;
use super::json::{self, List, Object};
use super::metadata::RawMetadata;
use super::tensor::{check_type, dtype_str, field_name, shape};
use super::{MetadataError, RdmaMetadata, TensorEnvelope, TensorSpec};

impl TensorEnvelope {
    /// Reads a `TensorTransferSpec` as Dynamo's Python workers send it: `field_name`, `shape`, `dtype_str`
    /// (torch's name) and `serialized_request`. All the request's descriptors are the tensor's.
    ///
    /// Other fields are ignored, as the original does: some workers add their own.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json); a dtype this library does not know, and a shape that is not of as
    /// many bytes as the request offers.
    pub fn from_transfer_spec_json(document: &str) -> Result<Self, MetadataError> {
        let Object(raw) = json::parse::<Object<RawTransferSpec>>(document.as_bytes(), MAX_ENVELOPE_BYTES)?;
        let metadata: RdmaMetadata = raw.serialized_request.try_into()?;
        let (dtype, shape) = check_type(&raw.field_name, &raw.dtype_str, raw.shape)?;
        let tensor = TensorSpec::new(raw.field_name, dtype, shape, 0..metadata.descriptors().len())?;
        Self::new(metadata, vec![tensor])
    }
}

#[derive(Deserialize)]
struct RawTransferSpec {
    #[serde(deserialize_with = "field_name")]
    field_name: String,
    #[serde(deserialize_with = "shape")]
    shape: List<u64>,
    #[serde(deserialize_with = "dtype_str")]
    dtype_str: String,
    serialized_request: Object<RawMetadata>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, OperationKind};

    /// Two descriptors of 4,096 bytes, written by the Python original.
    const REQUEST: &str = include_str!("fixtures/python_b64.json");

    fn spec(shape: &str, dtype: &str) -> Result<TensorEnvelope, MetadataError> {
        TensorEnvelope::from_transfer_spec_json(&format!(
            r#"{{"field_name":"pixel_values","shape":{shape},"dtype_str":"{dtype}",
                "serialized_request":{REQUEST},"field_type":"batched","field_dim":0}}"#
        ))
    }

    #[test]
    fn what_python_workers_send_becomes_an_envelope_of_one_tensor() {
        let envelope = spec("[1,64,64]", "bfloat16").unwrap();
        let tensor = envelope.get("pixel_values").unwrap();
        assert_eq!((tensor.dtype, tensor.byte_len, tensor.descriptors()), (DType::BF16, 8192, 0..2));
        assert_eq!(envelope.metadata().kind(), OperationKind::Read);
        assert_eq!(envelope.metadata().to_json(), REQUEST);
    }

    #[test]
    fn an_unknown_dtype_or_a_shape_of_other_size_is_refused() {
        for (shape, dtype, reason) in [
            ("[1,64,64]", "bfloat17", "unknown torch dtype \"bfloat17\""),
            ("[1,64,64]", "", "unknown torch dtype"),
            ("[1,64,64]", "float32", "byte_len is 16384, but its descriptors have 8192"),
            ("[0]", "float32", "no elements"),
            ("[-1]", "float32", "shape[0]: invalid value: integer `-1`"),
            ("[18446744073709551615,2]", "uint8", "2^64 bytes or more"),
        ] {
            let error = spec(shape, dtype).unwrap_err().to_string();
            assert!(error.contains(reason), "{shape} {dtype}: {error}");
        }
    }
}
