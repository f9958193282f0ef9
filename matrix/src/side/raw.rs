//! Raw bytes: `connect_core` alone, with descriptors where a framework would have views.

use anyhow::{Context, Result, anyhow};
use connect_core::{
    Connector, DType, Descriptor, DescriptorMut, Error, MemoryError, RdmaMetadata, TensorEnvelope, TensorSpec,
};

use super::{End, NAME, Side};
use crate::case::{Case, Layout};

/// `connect_core`, with `Vec<u8>`.
#[derive(Debug)]
pub struct Raw;

impl Side for Raw {
    fn has(&self, _: DType) -> bool {
        true
    }

    fn offer(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        let offer = connector.create_readable(source(case, None)?).wait()?;
        let envelope = envelope(offer.metadata(), case)?;
        Ok((envelope, Box::new(move || Ok(offer.wait_for_completion().wait().map(drop)?))))
    }

    fn receive(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        let (target, gaps) = target(case, Some(envelope.metadata()))?;
        let read = connector.begin_read(envelope.metadata(), target).wait().map_err(Error::from)?;
        let received = read.wait_for_completion().wait().map_err(Error::from)?;
        check(received.memory, gaps, case)
    }

    fn make_room(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        let (target, gaps) = target(case, None)?;
        let offer = connector.create_writable(target).wait().map_err(Error::from)?;
        let envelope = envelope(offer.metadata(), case)?;
        let end = move || {
            let received = offer.wait_for_completion().wait().map_err(Error::from)?;
            check(received.memory, gaps, case)
        };
        Ok((envelope, Box::new(end)))
    }

    fn push(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        let source = source(case, Some(envelope.metadata()))?;
        connector.begin_write(source, envelope.metadata()).wait()?.wait_for_completion().wait()?;
        Ok(())
    }
}

fn envelope(metadata: &RdmaMetadata, case: Case) -> Result<TensorEnvelope> {
    let all = 0..metadata.descriptors().len();
    let spec = TensorSpec::new(NAME, case.dtype, case.shape(), all)?;
    Ok(TensorEnvelope::new(metadata.clone(), vec![spec])?)
}

/// The content: in the peer's pieces if it lies in one, else row by row.
fn source(case: Case, peer: Option<&RdmaMetadata>) -> Result<Vec<Descriptor>> {
    match case.layout {
        Layout::Contiguous => {
            let (whole, mut end) = (Descriptor::new(case.bytes())?, 0);
            let Some(peer) = peer else { return Ok(vec![whole]) };
            let piece = |len: u64| {
                end += len;
                whole.slice(end - len..end)
            };
            Ok(lens(peer).map(piece).collect::<Result<_, MemoryError>>()?)
        }
        Layout::Strided => {
            let (base, len) = (Descriptor::new(case.base())?, case.row_len() as u64);
            let row = |start: usize| base.slice(start as u64..start as u64 + len);
            Ok(case.rows().map(row).collect::<Result<_, _>>()?)
        }
    }
}

/// Room for the content, cut in the same way, and what else the buffer consists of.
fn target(case: Case, peer: Option<&RdmaMetadata>) -> Result<(Vec<DescriptorMut>, Vec<DescriptorMut>)> {
    match case.layout {
        Layout::Contiguous => {
            let mut rest = DescriptorMut::new(vec![0u8; case.bytes().len()])?;
            let mut pieces = Vec::new();
            let lens: Vec<u64> = peer.map(|peer| lens(peer).collect()).unwrap_or_default();
            for len in lens.iter().take(lens.len().saturating_sub(1)) {
                let (piece, after) = rest.split_at(*len)?;
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            Ok((pieces, Vec::new()))
        }
        Layout::Strided => {
            let mut rest = DescriptorMut::new(case.zeros())?;
            let (mut gaps, mut rows, mut at) = (Vec::new(), Vec::new(), 0);
            let mut starts: Vec<(usize, usize)> =
                case.rows().enumerate().map(|(row, at)| (at, row)).collect();
            starts.sort_unstable();
            for (start, row) in starts {
                let (gap, after) = rest.split_at((start - at) as u64)?;
                let (piece, after) = after.split_at(case.row_len() as u64)?;
                at = start + case.row_len();
                gaps.push(gap);
                rows.push((row, piece));
                rest = after;
            }
            gaps.push(rest);
            rows.sort_unstable_by_key(|(row, _)| *row);
            Ok((rows.into_iter().map(|(_, piece)| piece).collect(), gaps))
        }
    }
}

fn check(mut pieces: Vec<DescriptorMut>, gaps: Vec<DescriptorMut>, case: Case) -> Result<()> {
    drop(gaps);
    let last = pieces.pop().context("a target has pieces")?;
    drop(pieces);
    let buffer = last.into_memory::<Vec<u8>>().map_err(|_| anyhow!("the buffer is still held"))?;
    match case.layout {
        Layout::Contiguous => case.check(&buffer),
        Layout::Strided => case.check_base(&buffer),
    }
}

fn lens(metadata: &RdmaMetadata) -> impl Iterator<Item = u64> {
    metadata.descriptors().iter().map(|descriptor| descriptor.size())
}
