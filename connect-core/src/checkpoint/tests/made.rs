//! Files to test with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A folder that goes away with the test.
pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Bytes that differ from tensor to tensor and from place to place.
pub(super) fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed * 31) as u8).collect()
}

/// Tensors of several types and shapes, one without elements and one scalar among them.
pub(super) fn tensors() -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    vec![
        ("wide", Dtype::F64, vec![3, 5], content(120, 1)),
        ("layers.0.w", Dtype::BF16, vec![64, 33], content(4224, 2)),
        ("layers.1.w", Dtype::F32, vec![10_000], content(40_000, 3)),
        ("odd", Dtype::U8, vec![7], content(7, 4)),
        ("none", Dtype::F32, vec![0, 3], vec![]),
        ("scalar", Dtype::I64, vec![], content(8, 5)),
        ("packed", Dtype::F4, vec![6], content(3, 6)),
    ]
}

/// A file with the tensors whose names begin so.
pub(super) fn file(folder: &Path, name: &str, beginning: &str) -> PathBuf {
    let path = folder.join(name);
    let all = tensors();
    let views: BTreeMap<_, _> = all
        .iter()
        .filter(|(name, ..)| name.starts_with(beginning))
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    let texts = std::collections::HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("by".to_owned(), "a test".to_owned()),
    ]);
    safetensors::serialize_to_file(&views, Some(texts), &path).unwrap();
    path
}

/// What a file holds, by the format's own reader.
pub(super) fn parsed(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            (name.to_owned(), (view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect()
}
