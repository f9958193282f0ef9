//! The processed inputs that Dynamo's front-end offers to its workers.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::envelope::MAX_ENVELOPE_BYTES;
use super::json::{self, List, Object};
use super::transfer_spec::{RawTransferSpec, TransferSpec, to_json};
use super::{MetadataError, TensorEnvelope};

/// What Dynamo calls each item in [`MmKwargsTransfer`]: one image, say, serialised by vLLM.
pub const MM_KWARGS_ITEM_NAME: &str = "__pickled_kwargs_item__";

/// Most items, and most hashes, in one document. A request with a thousand images is larger than any context.
const MAX_ITEMS: usize = 1024;

/// Dynamo's `MmKwargsTransferMetadata`: what its multimodal front-end has processed, for a worker to read.
///
/// Each item is an offer of its own, an envelope of one tensor that `recv_new` of the adapters takes. What the bytes
/// mean is between the front-end and the engine: vLLM's items are framed `MsgpackEncoder` buffers.
///
/// ```
/// use connect_core::wire::MmKwargsTransfer;
///
/// # let sent = r#"{"modality":"image","mm_hashes":["8f1e"],"tensor_specs":[{"field_name":"__pickled_kwargs_item__",
/// #   "shape":[32],"dtype_str":"uint8","serialized_request":{"descriptors":[{"device":"cpu","ptr":4096,"size":32}],
/// #   "nixl_metadata":"b64:eJwDAAAAAAE=","notification_key":"k","operation_kind":1}}]}"#;
/// let transfer = MmKwargsTransfer::from_json(sent)?;
/// for item in &transfer.items {
///     println!("{}: {} bytes", transfer.modality, item.metadata().total_bytes());
/// }
/// assert_eq!(MmKwargsTransfer::from_json(&transfer.to_json()?)?, transfer);
/// # Ok::<(), connect_core::MetadataError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct MmKwargsTransfer {
    /// What kind of input it is: `image`, `video`, `audio`.
    pub modality: String,
    /// One envelope of one tensor for each item, in order. Items may have the same name.
    pub items: Vec<TensorEnvelope>,
    /// The front-end's name for the content of each input, also of those that are not transferred.
    pub mm_hashes: Vec<String>,
}

impl MmKwargsTransfer {
    /// Reads a front-end's document, the value of `mm_kwargs_nixl` among a request's extra arguments.
    ///
    /// # Errors
    /// As [`TensorEnvelope::from_transfer_spec_json`], for each item; more than 1,024 items or hashes.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        let Object(raw) = json::parse::<Object<RawTransfer>>(document.as_bytes(), MAX_ENVELOPE_BYTES)?;
        check_count("tensor_specs", raw.tensor_specs.count)?;
        check_count("mm_hashes", raw.mm_hashes.count)?;
        let items = raw.tensor_specs.items.into_iter().map(|Object(item)| item.check());
        let items = items.collect::<Result<_, _>>()?;
        Ok(Self { modality: raw.modality, items, mm_hashes: raw.mm_hashes.items })
    }

    /// Writes the document, for Dynamo's receiver.
    ///
    /// # Errors
    /// As [`TensorEnvelope::to_transfer_spec_json`], for each item; elements of more than a byte, whose number the
    /// receiver would take for that of bytes; more than 1,024 items or hashes.
    pub fn to_json(&self) -> Result<String, MetadataError> {
        check_count("tensor_specs", self.items.len())?;
        check_count("mm_hashes", self.mm_hashes.len())?;
        let wide =
            self.items.iter().flat_map(TensorEnvelope::tensors).find(|tensor| tensor.dtype.bits() != 8);
        if let Some(tensor) = wide {
            let dtype = tensor.dtype;
            return Err(tensor.error(format!(
                "its elements are {dtype}, and Dynamo's receiver counts bytes; send it as U8"
            )));
        }
        let tensor_specs = self.items.iter().map(TransferSpec::of).collect::<Result<_, _>>()?;
        Ok(to_json(&Transfer { modality: &self.modality, tensor_specs, mm_hashes: &self.mm_hashes }))
    }
}

impl fmt::Debug for MmKwargsTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmKwargsTransfer")
            .field("modality", &self.modality)
            .field("items", &self.items.len())
            .field("mm_hashes", &self.mm_hashes.len())
            .finish()
    }
}

fn check_count(field: &'static str, count: usize) -> Result<(), MetadataError> {
    if count > MAX_ITEMS {
        let reason = format!("{count} are more than {MAX_ITEMS}");
        return Err(MetadataError::Field { field, reason });
    }
    Ok(())
}

#[derive(Serialize)]
struct Transfer<'a> {
    modality: &'a str,
    tensor_specs: Vec<TransferSpec<'a>>,
    mm_hashes: &'a [String],
}

#[derive(Deserialize)]
struct RawTransfer {
    #[serde(deserialize_with = "modality")]
    modality: String,
    #[serde(deserialize_with = "tensor_specs")]
    tensor_specs: List<Object<RawTransferSpec>>,
    #[serde(deserialize_with = "mm_hashes")]
    mm_hashes: List<String>,
}

fn modality<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "modality")
}

fn tensor_specs<'de, D: Deserializer<'de>>(d: D) -> Result<List<Object<RawTransferSpec>>, D::Error> {
    json::list(d, "tensor_specs", MAX_ITEMS)
}

fn mm_hashes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<String>, D::Error> {
    json::list(deserializer, "mm_hashes", MAX_ITEMS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{RdmaMetadata, TensorSpec};
    use crate::{DType, Device, OperationKind, Region};

    fn item(dtype: DType, addr: u64) -> TensorEnvelope {
        let region = Region::new(Device::CPU, addr, dtype.byte_len(8).unwrap()).unwrap();
        let metadata =
            RdmaMetadata::new(OperationKind::Read, &[region], b"agent", format!("key {addr}")).unwrap();
        let tensor = TensorSpec::new(MM_KWARGS_ITEM_NAME, dtype, [8], 0..1).unwrap();
        TensorEnvelope::new(metadata, vec![tensor]).unwrap()
    }

    fn transfer(items: Vec<TensorEnvelope>) -> MmKwargsTransfer {
        MmKwargsTransfer { modality: "image".to_owned(), items, mm_hashes: vec!["8f1e".to_owned()] }
    }

    #[test]
    fn items_of_one_name_keep_their_order_and_their_offers() {
        let sent = transfer(vec![item(DType::U8, 4096), item(DType::I8, 8192)]);
        let read = MmKwargsTransfer::from_json(&sent.to_json().unwrap()).unwrap();
        assert_eq!(read, sent);
        assert_eq!(read.items[1].metadata().notification_key(), "key 8192");
        assert!(!format!("{read:?}").contains("key"));
    }

    #[test]
    fn elements_that_dynamos_receiver_would_miscount_are_not_sent() {
        let error = transfer(vec![item(DType::F16, 4096)]).to_json().unwrap_err().to_string();
        assert!(error.contains("its elements are F16, and Dynamo's receiver counts bytes"), "{error}");
    }

    #[test]
    fn lists_are_bounded_and_fields_checked() {
        let document = |specs: &str, hashes: &str| {
            let document = format!(r#"{{"modality":"image","tensor_specs":{specs},"mm_hashes":{hashes}}}"#);
            MmKwargsTransfer::from_json(&document)
        };
        assert_eq!(document("[]", "[]").unwrap(), MmKwargsTransfer { mm_hashes: vec![], ..transfer(vec![]) });
        let many = format!("[{}0]", "0,".repeat(1024)).replace('0', r#""h""#);
        for (specs, hashes, reason) in [
            ("[]", many.as_str(), "mm_hashes: 1025 are more than 1024"),
            ("[]", "[1]", "mm_hashes[0]: invalid type"),
            ("[7]", "[]", "tensor_specs[0]: invalid type"),
            ("{}", "[]", "`tensor_specs` to be a list"),
            (r#"[{"field_name":"x"}]"#, "[]", "missing field `shape`"),
        ] {
            let error = document(specs, hashes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
