//! The single-tensor documents of Dynamo's Python workers, read as envelopes and written from them.

use serde::{Deserialize, Deserializer, Serialize};

use super::envelope::MAX_ENVELOPE_BYTES;
use super::json::{self, List, Object};
use super::metadata::RawMetadata;
use super::tensor::{MAX_DIMS, check_type, dtype_str, field_name, shape};
use super::{MetadataError, RdmaMetadata, TensorEnvelope, TensorSpec};

/// What the tensor of a `TransferRequest` is called in its envelope.
pub const EMBEDDINGS_TENSOR_NAME: &str = "embeddings";

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
        raw.check()
    }

    /// Writes the one tensor as a `TensorTransferSpec`.
    ///
    /// # Errors
    /// More tensors than one, a tensor in several pieces (a strided view; send `.contiguous()`), and types that torch
    /// lacks: the workers could not read it.
    pub fn to_transfer_spec_json(&self) -> Result<String, MetadataError> {
        Ok(to_json(&TransferSpec::of(self)?))
    }

    /// Reads a `TransferRequest` as Dynamo's encode workers send it with embeddings, in transfer mode `nixl-read`:
    /// `embeddings_shape`, `embedding_dtype_str` and `serialized_request`. The tensor is called
    /// [`EMBEDDINGS_TENSOR_NAME`].
    ///
    /// ```
    /// use connect_core::TensorEnvelope;
    ///
    /// # let document = r#"{"embeddings_shape":[2,8],"embedding_dtype_str":"float16","serialized_request":{"descriptors":[
    /// #   {"device":"cpu","ptr":4096,"size":32}],"nixl_metadata":"b64:eJwDAAAAAAE=","notification_key":"k","operation_kind":1}}"#;
    /// let envelope = TensorEnvelope::from_transfer_request_json(document)?; // what `recv_new` takes
    /// assert_eq!(envelope.tensors()[0].shape, [2, 8]);
    /// assert!(envelope.to_transfer_request_json()?.contains("embedding_dtype_str")); // and what a worker takes
    /// # Ok::<(), connect_core::MetadataError>(())
    /// ```
    ///
    /// # Errors
    /// As [`from_transfer_spec_json`](Self::from_transfer_spec_json). In the modes `local` and `nixl-write`
    /// `serialized_request` is a text, of a protocol of their own, and refused.
    pub fn from_transfer_request_json(document: &str) -> Result<Self, MetadataError> {
        let Object(raw) = json::parse::<Object<RawTransferRequest>>(document.as_bytes(), MAX_ENVELOPE_BYTES)?;
        let name = EMBEDDINGS_TENSOR_NAME;
        envelope(name.to_owned(), &raw.embedding_dtype_str, raw.embeddings_shape, raw.serialized_request)
    }

    /// Writes the one tensor as a `TransferRequest`, for the receiver of Dynamo's workers in transfer mode `nixl-read`.
    ///
    /// # Errors
    /// As [`to_transfer_spec_json`](Self::to_transfer_spec_json).
    pub fn to_transfer_request_json(&self) -> Result<String, MetadataError> {
        let (tensor, dtype_str) = readable_by_workers(self)?;
        Ok(to_json(&TransferRequest {
            embeddings_shape: &tensor.shape,
            embedding_dtype_str: dtype_str,
            serialized_request: self.metadata(),
        }))
    }
}

/// The one tensor and torch's name for its type, if Dynamo's workers can read it.
///
/// They make a tensor of the shape, which is one piece of memory, and the lists of descriptors must match.
pub(super) fn readable_by_workers(
    envelope: &TensorEnvelope,
) -> Result<(&TensorSpec, &'static str), MetadataError> {
    let [tensor] = envelope.tensors() else {
        let reason = format!(
            "there are {}, and the document holds one; offer each by itself",
            envelope.tensors().len()
        );
        return Err(MetadataError::Field { field: "tensors", reason });
    };
    if tensor.descriptor_count != 1 {
        let count = tensor.descriptor_count;
        return Err(tensor
            .error(format!("it is in {count} pieces, and Dynamo's workers read one; send `.contiguous()`")));
    }
    let dtype = tensor.dtype;
    let name = dtype.torch_name();
    Ok((tensor, name.ok_or_else(|| tensor.error(format!("torch has no type {dtype}; convert it first")))?))
}

fn envelope(
    name: String,
    dtype: &str,
    shape: List<u64>,
    request: Object<RawMetadata>,
) -> Result<TensorEnvelope, MetadataError> {
    let metadata: RdmaMetadata = request.try_into()?;
    let (dtype, shape) = check_type(&name, dtype, shape)?;
    let tensor = TensorSpec::new(name, dtype, shape, 0..metadata.descriptors().len())?;
    TensorEnvelope::new(metadata, vec![tensor])
}

pub(super) fn to_json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("a document has string keys and finite numbers only")
}

/// A `TensorTransferSpec` to be written.
#[derive(Serialize)]
pub(super) struct TransferSpec<'a> {
    field_name: &'a str,
    shape: &'a [u64],
    dtype_str: &'static str,
    serialized_request: &'a RdmaMetadata,
}

impl<'a> TransferSpec<'a> {
    pub(super) fn of(envelope: &'a TensorEnvelope) -> Result<Self, MetadataError> {
        let (tensor, dtype_str) = readable_by_workers(envelope)?;
        let (field_name, shape) = (tensor.name.as_str(), tensor.shape.as_slice());
        Ok(Self { field_name, shape, dtype_str, serialized_request: envelope.metadata() })
    }
}

#[derive(Serialize)]
struct TransferRequest<'a> {
    embeddings_shape: &'a [u64],
    embedding_dtype_str: &'static str,
    serialized_request: &'a RdmaMetadata,
}

/// A `TensorTransferSpec` as it was read, before its values were looked at.
#[derive(Deserialize)]
pub(super) struct RawTransferSpec {
    #[serde(deserialize_with = "field_name")]
    field_name: String,
    #[serde(deserialize_with = "shape")]
    shape: List<u64>,
    #[serde(deserialize_with = "dtype_str")]
    dtype_str: String,
    serialized_request: Object<RawMetadata>,
}

impl RawTransferSpec {
    pub(super) fn check(self) -> Result<TensorEnvelope, MetadataError> {
        envelope(self.field_name, &self.dtype_str, self.shape, self.serialized_request)
    }
}

#[derive(Deserialize)]
struct RawTransferRequest {
    #[serde(deserialize_with = "embeddings_shape")]
    embeddings_shape: List<u64>,
    #[serde(deserialize_with = "embedding_dtype_str")]
    embedding_dtype_str: String,
    serialized_request: Object<RawMetadata>,
}

fn embeddings_shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u64>, D::Error> {
    json::list(deserializer, "embeddings_shape", MAX_DIMS)
}

fn embedding_dtype_str<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "embedding_dtype_str")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, OperationKind, Region};

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

    fn one_piece(dtype: DType, shape: &[u64]) -> TensorEnvelope {
        let len = dtype.byte_len(shape.iter().product()).unwrap();
        let region = Region::new(Device::CPU, 4096, len).unwrap();
        let metadata = RdmaMetadata::new(OperationKind::Read, &[region], b"agent", "key".to_owned()).unwrap();
        let tensor = TensorSpec::new(EMBEDDINGS_TENSOR_NAME, dtype, shape, 0..1).unwrap();
        TensorEnvelope::new(metadata, vec![tensor]).unwrap()
    }

    #[test]
    fn what_is_written_for_python_workers_is_read_again() {
        let envelope = one_piece(DType::F16, &[4, 3]);
        let spec = envelope.to_transfer_spec_json().unwrap();
        assert_eq!(TensorEnvelope::from_transfer_spec_json(&spec).unwrap(), envelope);
        let request = envelope.to_transfer_request_json().unwrap();
        assert!(
            request.starts_with(r#"{"embeddings_shape":[4,3],"embedding_dtype_str":"float16","#),
            "{request}"
        );
        assert_eq!(TensorEnvelope::from_transfer_request_json(&request).unwrap(), envelope);
    }

    #[test]
    fn what_python_workers_could_not_read_is_not_written() {
        let view = spec("[1,64,64]", "bfloat16").unwrap();
        let (metadata, ..) = view.clone().into_parts();
        let two =
            |index: usize| TensorSpec::new(index.to_string(), DType::U8, [4096], index..index + 1).unwrap();
        let two = TensorEnvelope::new(metadata, vec![two(0), two(1)]).unwrap();
        for (envelope, reason) in [
            (
                view,
                "\"pixel_values\": it is in 2 pieces, and Dynamo's workers read one; send `.contiguous()`",
            ),
            (two, "there are 2, and the document holds one"),
            (one_piece(DType::F4, &[8]), "torch has no type F4"),
        ] {
            for written in [envelope.to_transfer_spec_json(), envelope.to_transfer_request_json()] {
                let error = written.unwrap_err().to_string();
                assert!(error.contains(reason), "{error}");
            }
        }
    }

    #[test]
    fn requests_of_other_transfer_modes_are_refused_by_the_field() {
        let document =
            r#"{"embeddings_shape":[8],"embedding_dtype_str":"float16","serialized_request":"/tmp/x"}"#;
        let error = TensorEnvelope::from_transfer_request_json(document).unwrap_err().to_string();
        assert!(error.contains("string \"/tmp/x\", expected an object"), "{error}");
    }
}
