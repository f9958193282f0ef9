//! A safetensors file: `connect_core::checkpoint`.

use std::fs;

use anyhow::{Result, ensure};
use connect_core::checkpoint::{Checkpoint, Download, Manifest};
use connect_core::{Connector, DType, TensorEnvelope};
use serde_json::json;

use super::{End, NAME, Refused, Side};
use crate::case::{Case, Layout};

const IN_ONE_PIECE: Refused = Refused("a tensor in a file is contiguous");
const PULLED: Refused =
    Refused("files are read from and received into by pull; push `Checkpoint::read`'s bytes");

/// `connect_core::checkpoint`.
#[derive(Debug)]
pub struct File;

impl Side for File {
    fn has(&self, _: DType) -> bool {
        true
    }

    fn offer(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        if case.layout == Layout::Strided {
            return Err(IN_ONE_PIECE.into());
        }
        let (folder, bytes) = (tempfile::tempdir()?, case.bytes());
        let path = folder.path().join("model.safetensors");
        let offsets = [0, bytes.len()];
        let tensor = json!({"dtype": case.dtype, "shape": case.shape(), "data_offsets": offsets});
        let mut header = json!({NAME: tensor}).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], header.as_bytes(), &bytes].concat())?;

        let served = Checkpoint::open(&path)?.serve(connector).wait()?;
        let offer = served.offer([NAME]).wait()?;
        let envelope = offer.envelope().clone();
        let end = move || {
            offer.wait_for_completion().wait()?;
            drop((served, folder));
            Ok(())
        };
        Ok((envelope, Box::new(end)))
    }

    fn receive(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        if case.layout == Layout::Strided {
            return Err(IN_ONE_PIECE.into());
        }
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("copy.safetensors");
        let download = Download::begin(connector, &path, &Manifest::of(envelope)?).wait()?;
        download.receive(envelope).wait()?;
        download.finish()?;
        let checkpoint = Checkpoint::open(&path)?;
        let there = checkpoint.tensors().any(|tensor| {
            (tensor.name.as_str(), tensor.dtype, &tensor.shape) == (NAME, case.dtype, &case.shape())
        });
        ensure!(there, "another tensor is in the file");
        case.check(&checkpoint.read(NAME)?)
    }

    fn make_room(&self, _: &Connector, _: Case) -> Result<(TensorEnvelope, End)> {
        Err(PULLED.into())
    }

    fn push(&self, _: &Connector, _: Case, _: &TensorEnvelope) -> Result<()> {
        Err(PULLED.into())
    }
}
