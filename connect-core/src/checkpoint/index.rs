//! The index of a checkpoint of several files: `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::MAX_HEADER_BYTES;
use crate::wire::quoted;

/// Most files of one checkpoint; the largest published ones have less than 200.
const MAX_FILES: usize = 1024;

/// Which file has which tensor.
#[derive(Debug)]
pub(super) struct Index {
    /// Names of tensors by file. Files are plain names in the index's own folder.
    pub(super) files: BTreeMap<String, Vec<String>>,
}

impl Index {
    /// # Errors
    /// The reason why it is none.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: BTreeMap<String, String>,
        }
        if json.len() > MAX_HEADER_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_HEADER_BYTES}", json.len()));
        }
        let raw: Raw = serde_json::from_slice(json).map_err(|error| quoted(&error.to_string()))?;
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in raw.weight_map {
            let mut components = Path::new(&file).components();
            let is_plain =
                matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
            if !is_plain || file.contains(['/', '\0']) {
                return Err(format!("{:?} is no name of a file in its folder", quoted(&file)));
            }
            files.entry(file).or_default().push(tensor);
        }
        match files.len() {
            0 => Err("it names no file".to_owned()),
            count if count > MAX_FILES => Err(format!("it names {count} files, more than {MAX_FILES}")),
            _ => Ok(Self { files }),
        }
    }
}
