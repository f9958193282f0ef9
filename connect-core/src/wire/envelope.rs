//! [`TensorEnvelope`]: a metadata document with the tensors it carries, so that a receiver can allocate.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::json::{self, List, Object};
use super::metadata::{MAX_DOCUMENT_BYTES, RawMetadata};
use super::tensor::{RawTensor, TensorSpec};
use super::{MetadataError, RdmaMetadata, extra};

/// The version this library writes, and the only one it reads.
pub const ENVELOPE_VERSION: u64 = 1;

/// Most tensors in one envelope: as many as there can be descriptors.
pub const MAX_TENSORS: usize = super::MAX_DESCRIPTORS;

/// Largest envelope: the largest metadata document, and as much again for the tensors, which at 150 bytes
/// each take 10 MB.
pub const MAX_ENVELOPE_BYTES: usize = 2 * MAX_DOCUMENT_BYTES;

/// A metadata document, and which tensors its descriptors are.
///
/// The document inside is unchanged, so a Python peer takes `serialized_request` as it is; the field names
/// are those that Dynamo's own Python workers use around it. A value is always consistent: the tensors cover
/// the descriptors in order, none left over and none shared, and each tensor's dtype and shape say the bytes
/// that its descriptors have.
///
/// ```
/// use connect_core::wire::{RdmaMetadata, TensorEnvelope, TensorSpec};
/// use connect_core::{DType, Device, OperationKind, Region};
///
/// let region = Region::new(Device::CPU, 0x1000, 48)?;
/// let offer = RdmaMetadata::new(OperationKind::Read, &[region], b"agent", "a key".to_owned())?;
/// let weights = TensorSpec::new("weights", DType::F32, vec![3, 4], 0..1)?;
/// let sent = TensorEnvelope::new(offer, vec![weights])?.to_json();
///
/// let received = TensorEnvelope::from_json(&sent)?;
/// assert_eq!(received.get("weights").unwrap().shape, [3, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Deserialize)]
#[serde(try_from = "Object<RawEnvelope>")]
pub struct TensorEnvelope {
    metadata: RdmaMetadata,
    tensors: Vec<TensorSpec>,
    extra: BTreeMap<String, Value>,
    /// Indices into `tensors`, by name.
    by_name: Vec<usize>,
}

impl TensorEnvelope {
    /// An envelope of these tensors around this document.
    ///
    /// # Errors
    /// The tensors contradict themselves, each other, or the document's descriptors; the error names the
    /// tensor.
    pub fn new(metadata: RdmaMetadata, tensors: Vec<TensorSpec>) -> Result<Self, MetadataError> {
        check_count(tensors.len())?;
        check_coverage(&metadata, &tensors)?;
        let by_name = index_by_name(&tensors)?;
        Ok(Self { metadata, tensors, extra: BTreeMap::new(), by_name })
    }

    /// The same with fields of your own, which travel along untouched.
    ///
    /// # Errors
    /// They have more than 65,536 values, more than 1 MiB of text, or are nested more than 32 deep.
    pub fn with_extra(mut self, extra: BTreeMap<String, Value>) -> Result<Self, MetadataError> {
        let fields = Value::Object(extra.into_iter().collect());
        let checked = extra::object(fields);
        self.extra = checked.map_err(|error| MetadataError::Field {
            field: "extra",
            reason: json::quoted(&error.to_string()),
        })?;
        Ok(self)
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// Another version, or anything but a consistent envelope of at most [`MAX_ENVELOPE_BYTES`]; the error
    /// names the version, the field or the tensor.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        Self::from_slice(document.as_bytes())
    }

    /// Reads an envelope from bytes.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and also bytes that are not UTF-8.
    pub fn from_slice(document: &[u8]) -> Result<Self, MetadataError> {
        // The version first, by itself: another one may have any other fields.
        let Object(probe) = json::parse::<Object<VersionProbe>>(document, MAX_ENVELOPE_BYTES)?;
        check_version(probe.version)?;
        json::parse::<Object<RawEnvelope>>(document, MAX_ENVELOPE_BYTES)?.try_into()
    }

    /// Writes the envelope.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an envelope has string keys and finite numbers only")
    }

    /// The document inside.
    pub fn metadata(&self) -> &RdmaMetadata {
        &self.metadata
    }

    /// The tensors, in the order of their descriptors.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorSpec> {
        let place = self.by_name.binary_search_by(|&index| self.tensors[index].name.as_str().cmp(name));
        place.ok().map(|place| &self.tensors[self.by_name[place]])
    }

    /// Refuses an envelope whose tensors do not all have a digest: for receivers that must be able to check
    /// what arrives.
    ///
    /// # Errors
    /// [`MetadataError::DigestMissing`], naming the first tensor without one. Ask the sender for digests.
    pub fn require_digests(&self) -> Result<(), MetadataError> {
        match self.tensors.iter().find(|tensor| tensor.digest.is_none()) {
            Some(tensor) => Err(MetadataError::DigestMissing { name: json::quoted(&tensor.name) }),
            None => Ok(()),
        }
    }

    /// The sender's own fields.
    pub fn extra(&self) -> &BTreeMap<String, Value> {
        &self.extra
    }

    /// The document, the tensors, and the sender's own fields.
    pub fn into_parts(self) -> (RdmaMetadata, Vec<TensorSpec>, BTreeMap<String, Value>) {
        (self.metadata, self.tensors, self.extra)
    }
}

fn check_version(found: u64) -> Result<(), MetadataError> {
    if found != ENVELOPE_VERSION {
        return Err(MetadataError::Version { found, supported: ENVELOPE_VERSION });
    }
    Ok(())
}

fn check_count(count: usize) -> Result<(), MetadataError> {
    if count > MAX_TENSORS {
        return Err(MetadataError::TooManyTensors { count, max: MAX_TENSORS });
    }
    Ok(())
}

/// Each tensor begins at the descriptor after the one before it, has the bytes its descriptors have, and the
/// last ends with the last descriptor.
fn check_coverage(metadata: &RdmaMetadata, tensors: &[TensorSpec]) -> Result<(), MetadataError> {
    let descriptors = metadata.descriptors();
    let mut next = 0;
    for tensor in tensors {
        tensor.check()?;
        if tensor.first_descriptor != next {
            let first = tensor.first_descriptor;
            return Err(tensor
                .error(format!("first_descriptor is {first}, but {next} descriptors are covered so far")));
        }
        let Range { start, end } = tensor.descriptors();
        let Some(own) = descriptors.get(start..end) else {
            let count = descriptors.len();
            return Err(tensor.error(format!("its descriptors end at {end}, but the document has {count}")));
        };
        let offered: u64 = own.iter().map(|descriptor| descriptor.size()).sum();
        if offered != tensor.byte_len {
            let wanted = tensor.byte_len;
            return Err(
                tensor.error(format!("byte_len is {wanted}, but its descriptors have {offered} bytes"))
            );
        }
        next = end;
    }
    if next != descriptors.len() {
        return Err(MetadataError::DescriptorsLeftOver { covered: next, count: descriptors.len() });
    }
    Ok(())
}

fn index_by_name(tensors: &[TensorSpec]) -> Result<Vec<usize>, MetadataError> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_unstable_by_key(|&index| tensors[index].name.as_str());
    let twice = by_name.windows(2).find(|pair| tensors[pair[0]].name == tensors[pair[1]].name);
    match twice {
        Some(pair) => Err(tensors[pair[0]].error("another tensor has the same field_name".to_owned())),
        None => Ok(by_name),
    }
}

impl fmt::Debug for TensorEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorEnvelope")
            .field("metadata", &self.metadata)
            .field("tensors", &self.tensors)
            // Values may be as sensitive as the document's own.
            .field("extra", &self.extra.keys())
            .finish()
    }
}

impl Serialize for TensorEnvelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("TensorEnvelope", 4)?;
        fields.serialize_field("version", &ENVELOPE_VERSION)?;
        fields.serialize_field("serialized_request", &self.metadata)?;
        fields.serialize_field("tensors", &self.tensors)?;
        fields.serialize_field("extra", &self.extra)?;
        fields.end()
    }
}

#[derive(Deserialize)]
struct VersionProbe {
    #[serde(deserialize_with = "version")]
    version: u64,
}

/// An envelope as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnvelope {
    #[serde(deserialize_with = "version")]
    version: u64,
    serialized_request: Object<RawMetadata>,
    #[serde(deserialize_with = "tensors")]
    tensors: List<Object<RawTensor>>,
    #[serde(default, deserialize_with = "extra::object")]
    extra: BTreeMap<String, Value>,
}

impl TryFrom<Object<RawEnvelope>> for TensorEnvelope {
    type Error = MetadataError;

    fn try_from(Object(raw): Object<RawEnvelope>) -> Result<Self, MetadataError> {
        check_version(raw.version)?;
        check_count(raw.tensors.count)?;
        let tensors =
            raw.tensors.items.into_iter().map(|Object(raw)| raw.check()).collect::<Result<_, _>>()?;
        let envelope = Self::new(raw.serialized_request.try_into()?, tensors)?;
        // Bounded while it was read.
        Ok(Self { extra: raw.extra, ..envelope })
    }
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "version")
}

fn tensors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<Object<RawTensor>>, D::Error> {
    json::list(deserializer, "tensors", MAX_TENSORS)
}

#[cfg(test)]
mod tests;
