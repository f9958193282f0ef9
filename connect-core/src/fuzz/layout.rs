//! The arithmetic of shapes, strides and ranges.

use super::{Bytes, bounded, measured, printable};
use crate::layout::{self, Run, check_disjoint, check_fragmentation, runs_within, split_to_match};
use crate::{DType, Device, Region, TensorSpec};

/// Stands in for the real limit, which costs a millisecond to reach.
const LIMIT: usize = 1 << 9;

/// Views up to this many elements are also walked the slow and obvious way.
const WALKED: u128 = 1 << 10;

pub(super) fn layout(input: &[u8]) {
    let mut input = Bytes::new(input);
    let rank = usize::from(input.byte() % 7);
    let dims: Vec<usize> = (0..rank).map(|_| input.number() as usize).collect();
    let strides: Vec<isize> = (0..rank).map(|_| input.number() as isize).collect();
    let offset = input.number() as usize;
    let (runs, peak) = measured(|| runs_within(&dims, &strides, offset, LIMIT));
    bounded(peak, LIMIT);
    match runs {
        Ok(runs) => check_runs(&runs, &dims, &strides, offset, &mut input),
        Err(error) => printable(&error),
    }
    check_spec(&dims, &mut input);
    check_pieces(&mut input);
}

fn check_runs(runs: &[Run], dims: &[usize], strides: &[isize], offset: usize, input: &mut Bytes<'_>) {
    let elements = product(dims).expect("it was walked");
    assert!(runs.len() <= LIMIT);
    assert_eq!(runs.iter().map(|run| run.len as u128).sum::<u128>(), elements);
    assert!(runs.iter().all(|run| run.len > 0 && run.offset.checked_add(run.len).is_some()));
    assert!(
        runs.windows(2).all(|pair| pair[0].offset + pair[0].len != pair[1].offset),
        "they could be merged"
    );
    let walked = (elements <= WALKED).then(|| walk(dims, strides, offset));
    if let Some(walked) = &walked {
        let expanded: Vec<usize> = runs.iter().flat_map(|run| run.offset..run.offset + run.len).collect();
        assert_eq!(&expanded, walked);
    }
    let disjoint = check_disjoint(runs).is_ok();
    if let Some(mut walked) = walked {
        let count = walked.len();
        walked.sort_unstable();
        walked.dedup();
        assert_eq!(disjoint, walked.len() == count);
    }
    let (base, storage, element) = (input.number(), input.number() as usize, input.number() as usize);
    let _ = check_fragmentation(runs, element).map_err(|error| printable(&error));
    match layout::regions(Device::CPU, base, storage, runs, element) {
        Ok(regions) => {
            assert_eq!(regions.len(), runs.len());
            for (region, run) in regions.iter().zip(runs) {
                assert_eq!(u128::from(region.len()), run.len as u128 * element as u128);
                assert!(region.addr() >= base && region.end() - base <= storage as u64);
            }
        }
        Err(error) => printable(&error),
    }
}

/// Offsets of all elements in row-major order.
fn walk(dims: &[usize], strides: &[isize], offset: usize) -> Vec<usize> {
    let mut offsets = vec![offset];
    if dims.contains(&0) {
        return Vec::new();
    }
    for (&dim, &stride) in dims.iter().zip(strides) {
        // A dimension of one element may have any stride.
        let stride = if dim == 1 { 0 } else { stride as usize };
        offsets = offsets.iter().flat_map(|at| (0..dim).map(move |index| at + index * stride)).collect();
    }
    offsets
}

/// The number of elements, if 128 bits can hold it.
fn product(dims: &[usize]) -> Option<u128> {
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(1u128, |product, &dim| product.checked_mul(dim as u128))
}

fn check_spec(dims: &[usize], input: &mut Bytes<'_>) {
    let dtype = DType::ALL[usize::from(input.byte()) % DType::ALL.len()];
    let shape: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
    let bytes = product(dims).and_then(|elements| elements.checked_mul(u128::from(dtype.bits())));
    let bytes = bytes.map(|bits| bits.div_ceil(8));
    match TensorSpec::new("x", dtype, shape, 0..1) {
        Ok(spec) => assert_eq!(Some(u128::from(spec.byte_len)), bytes),
        Err(error) => {
            printable(&error);
            // The elements themselves are counted in 64 bits.
            let most = u128::from(u64::MAX);
            let fits = product(dims).is_some_and(|elements| elements <= most);
            assert!(!fits || bytes.is_none_or(|bytes| bytes == 0 || bytes > most));
        }
    }
}

fn check_pieces(input: &mut Bytes<'_>) {
    let count = usize::from(input.byte() % 8);
    let mut region = || Region::new(Device::CPU, input.number(), input.number()).ok();
    let local: Vec<Region> = (0..count).filter_map(|_| region()).collect();
    let lens: Vec<u64> = (0..input.byte() % 16).map(|_| input.number()).collect();
    match split_to_match(&local, &lens) {
        Ok(pieces) => {
            assert!(pieces.iter().map(Region::len).eq(lens));
            // One after the other, each inside one of ours.
            let (mut index, mut at) = (0, 0);
            for piece in pieces {
                let whole = &local[index];
                assert_eq!(piece.addr(), whole.addr() + at);
                assert!(whole.contains(&piece));
                at += piece.len();
                if at == whole.len() {
                    (index, at) = (index + 1, 0);
                }
            }
            assert_eq!((index, at), (local.len(), 0));
        }
        Err(error) => printable(&error),
    }
    if let Some(region) = local.first() {
        let (start, end) = (input.number(), input.number());
        let slice = region.slice(start..end);
        assert_eq!(slice.is_ok(), start < end && end <= region.len());
        if let Ok(slice) = slice {
            assert!(region.contains(&slice) && region.overlaps(&slice));
            assert_eq!((slice.addr() - region.addr(), slice.len()), (start, end - start));
        }
    }
}
