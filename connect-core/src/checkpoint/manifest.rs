//! [`Manifest`]: what a checkpoint holds, told to a peer.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::CheckpointError;
use crate::DType;
use crate::wire::json::{self, List, Object};
use crate::wire::{Digest, MAX_DIMS, MAX_TENSORS, MetadataError, TensorEnvelope, TensorSpec, parse, quoted};

/// Longest manifest that is read: the longest header, and a digest for each tensor.
pub const MAX_MANIFEST_BYTES: usize = 2 * super::MAX_HEADER_BYTES;

/// The version that is written, and the only one that is read.
const VERSION: u64 = 1;

/// What safetensors keeps its own texts under, so that no tensor can be called so.
const RESERVED: &str = "__metadata__";

/// The tensors of a checkpoint: names, element types, shapes, and what their bytes hash to, if somebody looked.
///
/// A receiver needs it to lay out the file before the first tensor arrives. It is input from somebody else: a value is
/// always consistent. Digests in it are worth what the way of the manifest is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    tensors: Vec<ManifestTensor>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManifestTensor {
    /// Its name, unique in the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first, in elements.
    pub shape: Vec<u64>,
    /// Its length in bytes.
    pub byte_len: u64,
    /// What its bytes hash to.
    pub digest: Option<Digest>,
}

impl ManifestTensor {
    /// # Errors
    /// A name, a shape or a number of dimensions that no envelope could carry.
    pub(super) fn new(name: String, dtype: DType, shape: Vec<u64>) -> Result<Self, MetadataError> {
        let TensorSpec { name, dtype, shape, byte_len, .. } = TensorSpec::new(name, dtype, shape, 0..0)?;
        Ok(Self { name, dtype, shape, byte_len, digest: None })
    }
}

impl Manifest {
    /// # Errors
    /// [`CheckpointError::Manifest`]: a name twice, or a reserved one; too many tensors or bytes.
    pub(super) fn new(
        tensors: Vec<ManifestTensor>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self, CheckpointError> {
        let refused = |reason: String| CheckpointError::Manifest { reason };
        if tensors.len() > MAX_TENSORS {
            return Err(refused(format!("it has {} tensors, more than {MAX_TENSORS}", tensors.len())));
        }
        let (mut names, mut bytes) = (HashSet::new(), 0u64);
        for tensor in &tensors {
            let name = || quoted(&tensor.name);
            if tensor.name == RESERVED || !names.insert(&tensor.name) {
                return Err(refused(format!("{:?} is there twice, or reserved", name())));
            }
            let total = bytes.checked_add(tensor.byte_len).filter(|&total| total <= i64::MAX as u64);
            bytes = total.ok_or_else(|| refused(format!("no file holds tensor {:?}, too", name())))?;
        }
        Ok(Self { tensors, metadata })
    }

    /// The tensors of one offer, for senders that have no checkpoint of their own.
    ///
    /// # Errors
    /// [`CheckpointError::Manifest`]: a tensor is called `__metadata__`.
    pub fn of(envelope: &TensorEnvelope) -> Result<Self, CheckpointError> {
        let tensor = |spec: &TensorSpec| ManifestTensor {
            name: spec.name.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            byte_len: spec.byte_len,
            digest: spec.digest,
        };
        Self::new(envelope.tensors().iter().map(tensor).collect(), BTreeMap::new())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Manifest`] for anything but a consistent manifest of at most [`MAX_MANIFEST_BYTES`].
    pub fn from_json(document: &str) -> Result<Self, CheckpointError> {
        let refused = |reason: String| CheckpointError::Manifest { reason: quoted(&reason) };
        let said = |error: MetadataError| refused(error.to_string());
        // The version first, by itself: another one may have any other fields.
        let Object(probe) =
            parse::<Object<VersionProbe>>(document.as_bytes(), MAX_MANIFEST_BYTES).map_err(said)?;
        if probe.version != VERSION {
            return Err(refused(format!("it has version {}, and only {VERSION} is known", probe.version)));
        }
        let Object(raw) =
            parse::<Object<RawManifest>>(document.as_bytes(), MAX_MANIFEST_BYTES).map_err(said)?;
        if raw.tensors.count > MAX_TENSORS {
            return Err(refused(format!("it has {} tensors, more than {MAX_TENSORS}", raw.tensors.count)));
        }
        let tensor = |Object(raw): Object<RawTensor>| {
            let dtype = raw.dtype.parse().map_err(|error| refused(format!("{error}")))?;
            if raw.shape.count > MAX_DIMS {
                return Err(refused(format!("{:?} has {} dimensions", quoted(&raw.name), raw.shape.count)));
            }
            let mut tensor = ManifestTensor::new(raw.name, dtype, raw.shape.items).map_err(said)?;
            let digest = raw.digest.map(|text| text.parse::<Digest>()).transpose();
            tensor.digest = digest.map_err(|error| refused(error.to_string()))?;
            Ok(tensor)
        };
        let tensors = raw.tensors.items.into_iter().map(tensor).collect::<Result<_, CheckpointError>>()?;
        Self::new(tensors, raw.metadata)
    }

    /// Writes the manifest.
    pub fn to_json(&self) -> String {
        let tensor = |tensor: &ManifestTensor| WrittenTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            digest: tensor.digest.map(|digest| digest.to_string()),
        };
        let tensors = self.tensors.iter().map(tensor).collect();
        let written = Written { version: VERSION, metadata: self.metadata.clone(), tensors };
        serde_json::to_string(&written).expect("a manifest has string keys only")
    }

    /// The tensors.
    pub fn tensors(&self) -> &[ManifestTensor] {
        &self.tensors
    }

    /// The checkpoint's own texts, such as `format`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.byte_len).sum()
    }
}

#[derive(Serialize)]
struct Written {
    version: u64,
    metadata: BTreeMap<String, String>,
    tensors: Vec<WrittenTensor>,
}

#[derive(Serialize)]
struct WrittenTensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

#[derive(Deserialize)]
struct VersionProbe {
    #[serde(deserialize_with = "version")]
    version: u64,
}

/// A manifest as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    #[serde(rename = "version", deserialize_with = "version")]
    _version: u64,
    #[serde(default, deserialize_with = "texts")]
    metadata: BTreeMap<String, String>,
    #[serde(deserialize_with = "tensors")]
    tensors: List<Object<RawTensor>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: List<u64>,
    #[serde(default)]
    digest: Option<String>,
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "version")
}

fn tensors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<Object<RawTensor>>, D::Error> {
    json::list(deserializer, "tensors", MAX_TENSORS)
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u64>, D::Error> {
    json::list(deserializer, "shape", MAX_DIMS)
}

/// Texts by name, each name once.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Texts;
    impl<'de> Visitor<'de> for Texts {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`metadata` to be an object of strings")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut texts = BTreeMap::new();
            while let Some((name, text)) = map.next_entry::<String, String>()? {
                let quoted = quoted(&name);
                if texts.insert(name, text).is_some() {
                    return Err(A::Error::custom(format_args!("duplicate field `{quoted}` in `metadata`")));
                }
            }
            Ok(texts)
        }
    }
    deserializer.deserialize_map(Texts)
}
