//! The decoded media that Dynamo's Rust front-end offers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::envelope::MAX_ENVELOPE_BYTES;
use super::json::{self, List, Object};
use super::tensor::MAX_DIMS;
use super::transfer_spec::{readable_by_workers, to_json};
use super::{
    MetadataError, OperationKind, RdmaMetadata, SerializedDescriptor, TensorEnvelope, TensorSpec, extra,
};
use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::memory::Region;

/// What the tensor of a media descriptor is called in its envelope.
pub const MEDIA_TENSOR_NAME: &str = "media";

/// An image, video or audio clip that Dynamo's Rust front-end decoded and offers to be read.
///
/// The front-end's document is its own: one NIXL descriptor, a shape and a dtype beside the agent blob, and
/// no notification key, because the front-end does not wait to be told. It keeps the memory for as long as
/// it keeps the request, so read at once and expect a late read to fail.
///
/// Known fields are checked like any peer's. Unknown ones are ignored: the front-end has added some before.
///
/// ```
/// use connect_core::wire::MediaDescriptor;
///
/// let media = MediaDescriptor::from_json(
///     r#"{"nixl_metadata": "b64:eJwDAAAAAAE=",
///         "nixl_descriptor": {"addr": 4096, "size": 12, "mem_type": "Dram", "device_id": 0},
///         "shape": [2, 2, 3], "dtype": "UINT8", "metadata": null}"#,
/// )?;
/// let envelope = media.into_envelope()?;
/// assert_eq!(envelope.tensors()[0].shape, [2, 2, 3]);
/// # Ok::<(), connect_core::wire::MetadataError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct MediaDescriptor {
    nixl_metadata: String,
    region: Region,
    tensor: TensorSpec,
    metadata: Option<Value>,
    content_hash: Option<String>,
}

impl MediaDescriptor {
    /// Reads a front-end's media descriptor.
    ///
    /// # Errors
    /// A missing field or one of another type, an unknown memory or element type, a range that is null, empty
    /// or wraps around, or a shape that is not of as many bytes as the range.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        json::parse::<Object<RawMedia>>(document.as_bytes(), MAX_ENVELOPE_BYTES)?.0.check()
    }

    /// Describes a tensor that this process offers, as the front-end would describe its media: for workers that read
    /// media with Dynamo's `read_decoded_media_via_nixl`.
    ///
    /// Such a worker makes a notification key of its own, so the offer never learns that it was read. Keep it open
    /// until the request has ended some other way, and cancel it then. The worker takes the first three channels of
    /// the last dimension and ignores others.
    ///
    /// # Errors
    /// More tensors than one, one in several pieces (a strided view; send `.contiguous()`), a type that torch lacks, an
    /// offer to be written to, or memory that is neither of the system nor of a CUDA device.
    pub fn of(envelope: &TensorEnvelope) -> Result<Self, MetadataError> {
        let (tensor, _) = readable_by_workers(envelope)?;
        let offer = envelope.metadata();
        if offer.kind() != OperationKind::Read {
            return Err(MetadataError::WrongKind { offered: offer.kind(), wanted: OperationKind::Read });
        }
        let region = offer.descriptors()[0].region();
        if !matches!(region.device().kind(), DeviceKind::Host | DeviceKind::Cuda) {
            let reason = format!("NIXL's names for memory have none for {}", region.device());
            return Err(MetadataError::Field { field: "mem_type", reason });
        }
        let tensor = TensorSpec { name: MEDIA_TENSOR_NAME.to_owned(), ..tensor.clone() };
        let nixl_metadata = offer.nixl_metadata().to_owned();
        Ok(Self { nixl_metadata, region, tensor, metadata: None, content_hash: None })
    }

    /// The same with what the worker shall know of the media: the frames of a video and their rate, say.
    ///
    /// # Errors
    /// As [`TensorEnvelope::with_extra`].
    pub fn with_metadata(mut self, metadata: Value) -> Result<Self, MetadataError> {
        let checked = extra::value(metadata);
        let refused = |error: serde_json::Error| MetadataError::Field {
            field: "metadata",
            reason: json::quoted(&error.to_string()),
        };
        self.metadata = Some(checked.map_err(refused)?);
        Ok(self)
    }

    /// The same with a name for the content, by which the worker may cache it: 16 hexadecimal digits in lower case, or
    /// Dynamo ignores it.
    #[must_use]
    pub fn with_content_hash(mut self, content_hash: impl Into<String>) -> Self {
        self.content_hash = Some(content_hash.into());
        self
    }

    /// Writes the descriptor as the front-end does.
    pub fn to_json(&self) -> String {
        let device = self.region.device();
        let mem_type = if device.kind() == DeviceKind::Cuda { "Vram" } else { "Dram" };
        let dtype = self.tensor.dtype.torch_name().unwrap_or_default().to_ascii_uppercase();
        to_json(&Media {
            nixl_metadata: &self.nixl_metadata,
            nixl_descriptor: NixlDescriptor {
                addr: self.region.addr(),
                size: self.region.len(),
                mem_type,
                device_id: device.id(),
            },
            shape: &self.tensor.shape,
            dtype,
            metadata: self.metadata.as_ref(),
            content_hash: self.content_hash.as_deref(),
        })
    }

    /// Where the front-end's memory is.
    pub fn device(&self) -> Device {
        self.region.device()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    /// The dimensions, outermost first: height, width, channels for an image.
    pub fn shape(&self) -> &[u64] {
        &self.tensor.shape
    }

    /// What the front-end found out while decoding, in its own terms.
    pub fn metadata(&self) -> Option<&Value> {
        self.metadata.as_ref()
    }

    /// The front-end's name for this content.
    pub fn content_hash(&self) -> Option<&str> {
        self.content_hash.as_deref()
    }

    /// An envelope of one readable tensor, [`MEDIA_TENSOR_NAME`]; the front-end's own fields go into its
    /// extra fields, under their names.
    ///
    /// The notification key is random: no operation waits for it.
    ///
    /// # Errors
    /// The agent blob is too large for a metadata document.
    pub fn into_envelope(self) -> Result<TensorEnvelope, MetadataError> {
        let descriptors = vec![SerializedDescriptor::from(self.region)];
        let key = Uuid::new_v4().to_string();
        let metadata = RdmaMetadata::checked(OperationKind::Read, descriptors, self.nixl_metadata, key)?;
        let mut extra = BTreeMap::new();
        extra.extend(self.metadata.map(|metadata| ("metadata".to_owned(), metadata)));
        extra.extend(self.content_hash.map(|hash| ("content_hash".to_owned(), hash.into())));
        TensorEnvelope::new(metadata, vec![self.tensor])?.with_extra(extra)
    }
}

impl fmt::Debug for MediaDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MediaDescriptor")
            .field("device", &self.device())
            .field("tensor", &self.tensor)
            .field("nixl_metadata", &format_args!("[{} bytes]", self.nixl_metadata.len()))
            .field("content_hash", &self.content_hash)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Media<'a> {
    nixl_metadata: &'a str,
    nixl_descriptor: NixlDescriptor,
    shape: &'a [u64],
    dtype: String,
    metadata: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<&'a str>,
}

#[derive(Serialize)]
struct NixlDescriptor {
    addr: u64,
    size: u64,
    mem_type: &'static str,
    device_id: u32,
}

/// A media descriptor as it was read, before its values were looked at.
#[derive(Deserialize)]
struct RawMedia {
    #[serde(deserialize_with = "nixl_metadata")]
    nixl_metadata: String,
    nixl_descriptor: Object<RawNixlDescriptor>,
    #[serde(deserialize_with = "shape")]
    shape: List<u64>,
    #[serde(deserialize_with = "dtype")]
    dtype: String,
    #[serde(default, deserialize_with = "extra::value")]
    metadata: Value,
    #[serde(default)]
    content_hash: Option<String>,
}

#[derive(Deserialize)]
struct RawNixlDescriptor {
    #[serde(deserialize_with = "addr")]
    addr: u64,
    #[serde(deserialize_with = "size")]
    size: u64,
    #[serde(deserialize_with = "mem_type")]
    mem_type: String,
    #[serde(deserialize_with = "device_id")]
    device_id: u64,
}

impl RawMedia {
    fn check(self) -> Result<MediaDescriptor, MetadataError> {
        let Object(descriptor) = self.nixl_descriptor;
        let device = descriptor.device()?;
        let region = Region::new(device, descriptor.addr, descriptor.size)
            .map_err(|source| MetadataError::Range { index: 0, source })?;
        let dtype = DType::from_torch_name(&self.dtype.to_ascii_lowercase())
            .map_err(|unknown| MetadataError::Field { field: "dtype", reason: unknown.to_string() })?;
        if self.shape.count > MAX_DIMS {
            let reason = format!("{} dimensions are more than {MAX_DIMS}", self.shape.count);
            return Err(MetadataError::Field { field: "shape", reason });
        }
        let tensor = TensorSpec::new(MEDIA_TENSOR_NAME, dtype, self.shape.items, 0..1)?;
        if tensor.byte_len != region.len() {
            let (shape, size) = (tensor.byte_len, region.len());
            return Err(
                tensor.error(format!("its shape has {shape} bytes, but the descriptor's size is {size}"))
            );
        }
        Ok(MediaDescriptor {
            nixl_metadata: self.nixl_metadata,
            region,
            tensor,
            metadata: Some(self.metadata).filter(|metadata| !metadata.is_null()),
            content_hash: self.content_hash,
        })
    }
}

impl RawNixlDescriptor {
    /// NIXL calls system memory DRAM, whatever its `device_id`, and that of a CUDA device VRAM.
    fn device(&self) -> Result<Device, MetadataError> {
        if self.mem_type.eq_ignore_ascii_case("dram") {
            return Ok(Device::CPU);
        }
        if self.mem_type.eq_ignore_ascii_case("vram") {
            let id = u32::try_from(self.device_id).map_err(|_| MetadataError::Field {
                field: "device_id",
                reason: format!("there is no CUDA device {}", self.device_id),
            })?;
            return Ok(Device::cuda(id));
        }
        let reason = format!("{:?} is neither Dram nor Vram", json::quoted(&self.mem_type));
        Err(MetadataError::Field { field: "mem_type", reason })
    }
}

fn nixl_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "nixl_metadata")
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u64>, D::Error> {
    json::list(deserializer, "shape", MAX_DIMS)
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "dtype")
}

fn addr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "addr")
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "size")
}

fn mem_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "mem_type")
}

fn device_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "device_id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "nixl_metadata": "b64:eJwDAAAAAAE=",
            "nixl_descriptor": {"addr": u64::MAX - 12, "size": 12, "mem_type": "Dram", "device_id": 7},
            "shape": [2, 2, 3],
            "dtype": "UINT8",
            "metadata": {"source_fps": 29.97, "frames": [0, 30]},
            "content_hash": "8f1e",
            "a_field_of_next_year": {"x": 1},
        })
    }

    fn with(pointer: &str, value: Value) -> Result<MediaDescriptor, MetadataError> {
        let mut document = document();
        *document.pointer_mut(pointer).unwrap() = value;
        MediaDescriptor::from_json(&document.to_string())
    }

    #[test]
    fn a_front_ends_media_becomes_a_readable_envelope() {
        let media = MediaDescriptor::from_json(&document().to_string()).unwrap();
        assert_eq!((media.device(), media.dtype(), media.shape()), (Device::CPU, DType::U8, &[2, 2, 3][..]));
        let other = media.clone().into_envelope().unwrap();
        let envelope = media.into_envelope().unwrap();
        let offer = envelope.metadata();
        assert_eq!(offer.kind(), OperationKind::Read);
        assert_eq!(offer.descriptors()[0].ptr(), u64::MAX - 12);
        assert_eq!(offer.decode_blob().unwrap(), b"");
        assert_eq!(offer.notification_key().len(), 36);
        assert_ne!(offer.notification_key(), other.metadata().notification_key());
        assert_eq!(envelope.extra()["metadata"]["source_fps"], 29.97);
        assert_eq!(envelope.extra()["content_hash"], "8f1e");
        assert_eq!(TensorEnvelope::from_json(&envelope.to_json()).unwrap(), envelope);
    }

    #[test]
    fn an_offer_is_described_as_the_front_end_describes_its_own() {
        let written = MediaDescriptor::from_json(&document().to_string()).unwrap();
        let envelope = written.clone().into_envelope().unwrap();
        let metadata = json!({"source_fps": 29.97, "frames": [0, 30]});
        let described = MediaDescriptor::of(&envelope).unwrap();
        let described = described.with_metadata(metadata).unwrap().with_content_hash("8f1e");
        assert_eq!(described, written);
        let json: Value = serde_json::from_str(&described.to_json()).unwrap();
        assert_eq!(MediaDescriptor::from_json(&described.to_json()).unwrap(), described);
        assert_eq!((&json["dtype"], &json["nixl_descriptor"]["mem_type"]), (&json!("UINT8"), &json!("Dram")));
        let on_cuda = with("/nixl_descriptor/mem_type", json!("Vram")).unwrap();
        assert_eq!(MediaDescriptor::from_json(&on_cuda.to_json()).unwrap().device(), Device::cuda(7));
    }

    #[test]
    fn what_no_worker_could_read_is_not_described() {
        let (read, tensors, _) = with("/dtype", json!("int8")).unwrap().into_envelope().unwrap().into_parts();
        let key = read.notification_key().to_owned();
        let write = RdmaMetadata::new(OperationKind::Write, &read.regions(), b"agent", key).unwrap();
        let error = MediaDescriptor::of(&TensorEnvelope::new(write, tensors).unwrap()).unwrap_err();
        assert!(matches!(error, MetadataError::WrongKind { .. }), "{error}");
        let xpu = Region::new(Device::xpu(0), 4096, 12).unwrap();
        let offer = RdmaMetadata::new(OperationKind::Read, &[xpu], b"agent", "key".to_owned()).unwrap();
        let tensor = TensorSpec::new("x", DType::U8, [12], 0..1).unwrap();
        let error = MediaDescriptor::of(&TensorEnvelope::new(offer, vec![tensor]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("none for xpu:0"), "{error}");
        let described = with("/dtype", json!("int8")).unwrap();
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        assert!(described.with_metadata(deep).is_err());
    }

    #[test]
    fn case_does_not_matter_in_the_names_of_types() {
        for name in ["Dram", "DRAM", "dram"] {
            assert_eq!(with("/nixl_descriptor/mem_type", json!(name)).unwrap().device(), Device::CPU);
        }
        for name in ["Vram", "VRAM"] {
            assert_eq!(with("/nixl_descriptor/mem_type", json!(name)).unwrap().device(), Device::cuda(7));
        }
        for name in ["uint8", "UINT8", "Int8"] {
            assert!(with("/dtype", json!(name)).is_ok());
        }
    }

    #[test]
    fn optional_fields_may_be_null_or_missing() {
        assert_eq!(with("/metadata", Value::Null).unwrap().metadata(), None);
        assert_eq!(with("/content_hash", Value::Null).unwrap().content_hash(), None);
        let mut document = document();
        let fields = document.as_object_mut().unwrap();
        fields.remove("metadata");
        fields.remove("content_hash");
        let envelope = MediaDescriptor::from_json(&document.to_string()).unwrap().into_envelope().unwrap();
        assert!(envelope.extra().is_empty());
    }

    #[test]
    fn known_fields_are_checked() {
        for (pointer, value, reason) in [
            ("/nixl_descriptor/addr", json!(0), "descriptor 0: the address is null"),
            ("/nixl_descriptor/addr", json!(u64::MAX), "descriptor 0: 12 bytes at"),
            ("/nixl_descriptor/addr", json!(-1), "`addr` to be an unsigned"),
            ("/nixl_descriptor/addr", json!(1e3), "`addr` to be an unsigned"),
            ("/nixl_descriptor/size", json!(0), "descriptor 0: the memory is empty"),
            ("/nixl_descriptor/size", json!(11), "its shape has 12 bytes"),
            ("/nixl_descriptor/mem_type", json!("Block"), "mem_type: \"Block\" is neither"),
            ("/nixl_descriptor/mem_type", json!(1), "`mem_type` to be a string"),
            ("/nixl_descriptor/device_id", json!(-1), "`device_id` to be an unsigned"),
            ("/nixl_descriptor", json!([1, 12, "Dram", 0]), "expected an object"),
            ("/shape", json!([2, 2, 4]), "its shape has 16 bytes"),
            ("/shape", json!([1u64 << 63, 1u64 << 63]), "2^64 bytes"),
            ("/shape", json!(vec![1; 33]), "33 dimensions"),
            ("/shape", json!([0]), "no elements"),
            ("/dtype", json!("UINT9"), "dtype: unknown torch dtype \"uint9\""),
            ("/nixl_metadata", json!(null), "`nixl_metadata` to be a string"),
        ] {
            let error = with(pointer, value).unwrap_err().to_string();
            assert!(error.contains(reason), "{pointer}: {error}");
        }
        let mut far = document();
        far["nixl_descriptor"]["mem_type"] = json!("Vram");
        far["nixl_descriptor"]["device_id"] = json!(1u64 << 32);
        assert!(matches!(
            MediaDescriptor::from_json(&far.to_string()),
            Err(MetadataError::Field { field: "device_id", .. })
        ));
    }

    #[test]
    fn missing_fields_are_named() {
        for field in ["nixl_metadata", "nixl_descriptor", "shape", "dtype"] {
            let mut document = document();
            document.as_object_mut().unwrap().remove(field);
            let error = MediaDescriptor::from_json(&document.to_string()).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{field}`")), "{error}");
        }
    }

    #[test]
    fn debug_output_hides_address_and_blob() {
        let media = with("/nixl_descriptor/addr", json!(123_456_789)).unwrap();
        let text = format!("{media:?}");
        assert!(
            !text.contains("123456789") && !text.contains("eJw") && text.contains("[16 bytes]"),
            "{text}"
        );
    }
}
