//! Every file of `attacks/` is refused as its README says.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use super::nixl_blob::parse_refused;
use crate::transport::local;
use crate::{MediaDescriptor, RdmaMetadata, TensorEnvelope};

/// A row of the table.
struct Attack {
    file: String,
    kind: String,
    says: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../attacks")
}

fn attacks() -> Vec<Attack> {
    let readme = fs::read_to_string(folder().join("README.md")).unwrap();
    let code = |cell: &str| cell.trim().trim_matches('`').trim().to_owned();
    let rows = readme.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| match row.trim_matches('|').split(" | ").collect::<Vec<_>>()[..] {
        [file, what, kind, says] if !what.trim().is_empty() && !code(says).is_empty() => {
            Attack { file: code(file), kind: code(kind), says: code(says) }
        }
        _ => panic!("not a row: {row}"),
    })
    .collect()
}

/// The error with which the reader of this folder refuses the bytes: its kind and its message.
fn refusal(folder: &str, bytes: &[u8]) -> (String, String) {
    let text = || std::str::from_utf8(bytes).expect("a document for this reader is text");
    match folder {
        "metadata" => of(RdmaMetadata::from_slice(bytes).and_then(|metadata| metadata.decode_blob())),
        "envelope" => of(TensorEnvelope::from_slice(bytes)),
        "transfer_spec" => of(TensorEnvelope::from_transfer_spec_json(text())),
        "media" => of(MediaDescriptor::from_json(text())),
        #[cfg(feature = "safetensors")]
        "checkpoint_manifest" => of(crate::checkpoint::Manifest::from_json(text())),
        "local_blob" => of(local::fuzz::parse_blob(bytes)),
        "local_frames" => of(local::fuzz::parse_frames(bytes)),
        "nixl_blob" => of(parse_refused(bytes)),
        other => panic!("no reader for {other}"),
    }
}

fn of<T, E: Debug + std::fmt::Display>(result: Result<T, E>) -> (String, String) {
    let Err(error) = result else { return ("accepted".to_owned(), String::new()) };
    let debug = format!("{error:?}");
    let kind = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    (kind.to_owned(), error.to_string())
}

#[test]
fn p5_every_attack_is_refused_as_its_readme_says() {
    let attacks = attacks();
    assert!(attacks.len() > 80, "only {} rows were read", attacks.len());
    for Attack { file, kind, says } in attacks {
        if cfg!(not(feature = "safetensors")) && file.starts_with("checkpoint_") {
            continue;
        }
        let bytes = fs::read(folder().join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (found, message) = refusal(file.split('/').next().unwrap(), &bytes);
        assert_eq!(found, kind, "{file}: {message}");
        assert!(message.contains(&says), "{file}: {message}");
        assert!(message.len() < 3000 && !message.contains(char::is_control), "{file}: {message:?}");
    }
}

#[test]
fn every_attack_has_its_row() {
    let rows: BTreeSet<String> = attacks().into_iter().map(|attack| attack.file).collect();
    let mut files = BTreeSet::new();
    for reader in fs::read_dir(folder()).unwrap().map(Result::unwrap) {
        for file in fs::read_dir(reader.path()).into_iter().flatten().map(Result::unwrap) {
            let (reader, file) = (reader.file_name(), file.file_name());
            files.insert(format!("{}/{}", reader.to_str().unwrap(), file.to_str().unwrap()));
        }
    }
    assert_eq!(files, rows);
}
