//! The header of a safetensors file, read with suspicion and written: [`Header`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::manifest::ManifestTensor;
use crate::DType;
use crate::wire::{MAX_TENSORS, quoted};

/// Longest header that is read. The largest published ones have less than 1 MiB; 65,536 tensors, the most in one
/// envelope, take 10 MB.
pub const MAX_HEADER_BYTES: usize = 16 << 20;

/// The length of the header comes first, in so many bytes.
pub(super) const PREFIX: usize = 8;

/// Data begins at a multiple of this, as the format's own writers have it.
const ALIGNMENT: usize = 8;

/// Which tensors a file holds, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// In the order in which they lie in the file. Ranges count from the end of the header, without a gap.
    pub(super) tensors: Vec<(ManifestTensor, Range<u64>)>,
    /// The file's own texts (`__metadata__`).
    pub(super) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Lays tensors out in a new file: those with larger elements first, so that each is aligned.
    pub(super) fn lay_out(tensors: &[ManifestTensor], metadata: &BTreeMap<String, String>) -> Self {
        let mut tensors = tensors.to_vec();
        tensors.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));
        let mut start = 0;
        let place = |tensor: ManifestTensor| {
            let range = start..start + tensor.byte_len;
            start = range.end;
            (tensor, range)
        };
        let tensors = in_order(tensors.into_iter().map(place).collect());
        Self { tensors, metadata: metadata.clone() }
    }

    /// Reads the JSON behind the length.
    ///
    /// # Errors
    /// The reason why it is no header: tensors that overlap or leave gaps, or have not the bytes of their shape;
    /// unknown types; too much of anything.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > MAX_HEADER_BYTES {
            return Err(format!("its header has {} bytes, more than {MAX_HEADER_BYTES}", json.len()));
        }
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|error| quoted(&format!("its header: {error}")))?;
        let names = metadata.offset_keys();
        if names.len() > MAX_TENSORS {
            return Err(format!("it has {} tensors, more than {MAX_TENSORS}", names.len()));
        }
        let place = |name: String| {
            let info = metadata.info(&name).ok_or("a tensor without a place")?;
            let dtype: DType = info.dtype.to_string().parse().map_err(|error| format!("{error}"))?;
            let shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
            let tensor = ManifestTensor::new(name, dtype, shape).map_err(|error| error.to_string())?;
            let range = info.data_offsets.0 as u64..info.data_offsets.1 as u64;
            // The format's own parser has compared them; a file is worth asking twice.
            if range.end - range.start != tensor.byte_len {
                return Err(format!("tensor {:?} has not the bytes of its shape", quoted(&tensor.name)));
            }
            Ok((tensor, range))
        };
        let tensors = in_order(names.into_iter().map(place).collect::<Result<_, String>>()?);
        let metadata = metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Self { tensors, metadata })
    }

    /// What a file begins with: the length, the JSON, and spaces up to the first tensor.
    ///
    /// # Errors
    /// The reason why there is no such file: a type that safetensors does not have, elements that fill no whole byte,
    /// too long a header.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let infos = self.tensors.iter().map(|(tensor, range)| {
            let dtype = dtype(tensor.dtype).ok_or("an element type that safetensors does not have")?;
            let shape = tensor.shape.iter().map(|&dim| dim as usize).collect();
            let data_offsets = (range.start as usize, range.end as usize);
            Ok((tensor.name.clone(), TensorInfo { dtype, shape, data_offsets }))
        });
        let infos = infos.collect::<Result<Vec<_>, &str>>()?;
        let texts: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        let texts = (!texts.is_empty()).then_some(texts);
        let metadata = Metadata::new(texts, infos).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; PREFIX];
        serde_json::to_writer(&mut bytes, &metadata).map_err(|error| error.to_string())?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), b' ');
        let len = bytes.len() - PREFIX;
        if len > MAX_HEADER_BYTES {
            return Err(format!("the header would have {len} bytes, more than {MAX_HEADER_BYTES}"));
        }
        bytes[..PREFIX].copy_from_slice(&(len as u64).to_le_bytes());
        Ok(bytes)
    }

    /// Bytes of all tensors.
    pub(super) fn data_len(&self) -> u64 {
        self.tensors.last().map_or(0, |(_, range)| range.end)
    }
}

/// The order in the file; those without elements, which may share a place, by name.
fn in_order(mut tensors: Vec<(ManifestTensor, Range<u64>)>) -> Vec<(ManifestTensor, Range<u64>)> {
    tensors.sort_by(|(a, x), (b, y)| (x.start, x.end, &a.name).cmp(&(y.start, y.end, &b.name)));
    tensors
}

/// safetensors' type of the same name.
fn dtype(dtype: DType) -> Option<Dtype> {
    serde_json::from_value(dtype.name().into()).ok()
}
