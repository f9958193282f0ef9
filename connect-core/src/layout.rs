//! Strided views as lists of contiguous runs: the part of every tensor adapter that knows no tensor framework.
//!
//! Offsets, strides and run lengths are in elements until [`regions`] turns them into bytes. Shapes may come
//! from a peer, so every sum and product is checked, and no list grows past [`MAX_RUNS`].

use crate::wire::MAX_DESCRIPTORS;
use crate::{Device, MemoryError, Region};

/// The most runs one view may have: what one operation takes as descriptors.
pub const MAX_RUNS: usize = MAX_DESCRIPTORS;

/// Runs that any view may have, however short they are. A descriptor costs some hundred nanoseconds on either
/// side, so this many are lost in the noise of a single operation.
const FREE_RUNS: usize = 4096;

/// The mean length in bytes below which more than [`FREE_RUNS`] runs are refused: there, a descriptor costs
/// more time than copying its bytes would.
const MIN_MEAN_BYTES: usize = 1024;

/// Adjacent elements of a view: where they begin in the storage, and how many they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Elements from the start of the storage.
    pub offset: usize,
    /// Number of elements, never zero.
    pub len: usize,
}

/// Why a view can't be described by contiguous runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A shape and a stride for each of its dimensions are needed.
    #[error("{dims} dimensions, but {strides} strides")]
    RankMismatch {
        /// Dimensions of the shape.
        dims: usize,
        /// Strides given.
        strides: usize,
    },
    /// A view that runs backwards through its storage.
    #[error("dimension {dim} has the negative stride {stride}; make the tensor contiguous first")]
    NegativeStride {
        /// Which dimension.
        dim: usize,
        /// Its stride.
        stride: isize,
    },
    /// The number of elements or an offset does not fit the address space.
    #[error("the shape {dims:?} with strides {strides:?} reaches past the end of the address space")]
    Overflow {
        /// The shape.
        dims: Vec<usize>,
        /// The strides.
        strides: Vec<isize>,
    },
    /// More pieces than one operation takes.
    #[error("the view has more than {MAX_RUNS} separate pieces; send `.contiguous()`, which copies once")]
    TooManyRuns,
    /// Many tiny pieces: describing them costs more than copying them.
    #[error(
        "the view has {runs} pieces of {mean_bytes} bytes on average; send `.contiguous()`, which copies once"
    )]
    FragmentationLimit {
        /// How many pieces there are.
        runs: usize,
        /// Their mean length in bytes.
        mean_bytes: usize,
    },
    /// A target whose elements share storage, such as a broadcast view.
    #[error(
        "elements of the target share storage (a broadcast or overlapping view); receive into `.contiguous()`"
    )]
    Overlap,
    /// The view reaches past the end of its storage.
    #[error("the view needs {needed} bytes of a storage that has {available}")]
    OutOfBounds {
        /// Bytes up to the end of the view.
        needed: usize,
        /// Bytes the storage has.
        available: usize,
    },
    /// The two sides cut the same bytes into pieces that don't fit each other.
    #[error("the peer's pieces do not fit this view's: {reason}; use a contiguous tensor on {remedy} side")]
    PiecesDiffer {
        /// What differs.
        reason: String,
        /// Whose tensor to make contiguous: `this` or `the other`.
        remedy: &'static str,
    },
    /// The address range is unusable.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The maximal contiguous runs of a view, in row-major order of its elements.
///
/// Strides and offset are in elements. A stride of zero repeats storage, which is fine to read from;
/// [`check_disjoint`] refuses it for targets. A view without elements has no runs.
///
/// ```
/// use connect_core::layout::{Run, contiguous_runs};
///
/// // Columns 1..3 of a 2 x 4 matrix.
/// let runs = contiguous_runs(&[2, 2], &[4, 1], 1)?;
/// assert_eq!(runs, [Run { offset: 1, len: 2 }, Run { offset: 5, len: 2 }]);
/// # Ok::<(), connect_core::layout::LayoutError>(())
/// ```
///
/// # Errors
/// A negative stride, numbers beyond the address space, or more than [`MAX_RUNS`] runs.
pub fn contiguous_runs(dims: &[usize], strides: &[isize], offset: usize) -> Result<Vec<Run>, LayoutError> {
    runs_within(dims, strides, offset, MAX_RUNS)
}

/// The same with another limit.
pub(crate) fn runs_within(
    dims: &[usize],
    strides: &[isize],
    offset: usize,
    max: usize,
) -> Result<Vec<Run>, LayoutError> {
    if dims.len() != strides.len() {
        return Err(LayoutError::RankMismatch { dims: dims.len(), strides: strides.len() });
    }
    if dims.contains(&0) {
        return Ok(Vec::new());
    }
    let axes = merged_axes(dims, strides)?;
    let overflow = || LayoutError::Overflow { dims: dims.to_vec(), strides: strides.to_vec() };
    check_extent(&axes, offset).ok_or_else(overflow)?;

    let (block, outer) = match axes.split_last() {
        Some((last, outer)) if last.stride == 1 => (last.dim, outer),
        _ => (1, &axes[..]),
    };
    let blocks = outer.iter().try_fold(1usize, |n, axis| n.checked_mul(axis.dim)).ok_or_else(overflow)?;
    // Merged axes touch only where an outer index steps, so at most every second seam closes: this bounds
    // the loop below before it starts.
    if blocks > 2 * max {
        return Err(LayoutError::TooManyRuns);
    }
    walk(outer, block, offset, blocks, max)
}

/// Refuses views in so many tiny pieces that copying them once is cheaper than describing them.
///
/// # Errors
/// More than 4096 runs of less than 1 KiB on average.
pub fn check_fragmentation(runs: &[Run], element_bytes: usize) -> Result<(), LayoutError> {
    let elements = runs.iter().fold(0usize, |sum, run| sum.saturating_add(run.len));
    match elements.saturating_mul(element_bytes).checked_div(runs.len()) {
        Some(mean_bytes) if runs.len() > FREE_RUNS && mean_bytes < MIN_MEAN_BYTES => {
            Err(LayoutError::FragmentationLimit { runs: runs.len(), mean_bytes })
        }
        _ => Ok(()),
    }
}

/// Refuses views that hold some element of the storage twice, and so can't be written to.
///
/// # Errors
/// Two runs overlap.
pub fn check_disjoint(runs: &[Run]) -> Result<(), LayoutError> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable_by_key(|run| run.offset);
    let overlap = sorted.windows(2).any(|pair| pair[0].offset.saturating_add(pair[0].len) > pair[1].offset);
    if overlap { Err(LayoutError::Overlap) } else { Ok(()) }
}

/// The byte ranges of `runs` in a storage of `storage_bytes` bytes at `base`.
///
/// # Errors
/// A run that reaches past the end of the storage, or a null `base`.
pub fn regions(
    device: Device,
    base: u64,
    storage_bytes: usize,
    runs: &[Run],
    element_bytes: usize,
) -> Result<Vec<Region>, LayoutError> {
    let region = |run: &Run| {
        let end = run.offset.checked_add(run.len).and_then(|end| end.checked_mul(element_bytes));
        if end.is_none_or(|end| end > storage_bytes) {
            let needed = end.unwrap_or(usize::MAX);
            return Err(LayoutError::OutOfBounds { needed, available: storage_bytes });
        }
        let addr = base.checked_add((run.offset * element_bytes) as u64);
        let len = (run.len * element_bytes) as u64;
        Ok(Region::new(device, addr.ok_or(MemoryError::Overflow { addr: base, len })?, len)?)
    };
    runs.iter().map(region).collect()
}

/// Cuts `local` at the places where the peer's pieces end, since an operation pairs pieces one to one.
///
/// # Errors
/// The two sides differ in bytes, or this side has a cut inside one of the peer's pieces: only the peer could
/// split that.
pub fn split_to_match(local: &[Region], remote_lens: &[u64]) -> Result<Vec<Region>, LayoutError> {
    let differ = |reason: String, remedy| LayoutError::PiecesDiffer { reason, remedy };
    let ours: u128 = local.iter().map(|region| u128::from(region.len())).sum();
    let theirs: u128 = remote_lens.iter().map(|&len| u128::from(len)).sum();
    if ours != theirs {
        return Err(differ(format!("{ours} bytes here, {theirs} there"), "either"));
    }
    let mut pieces = Vec::with_capacity(remote_lens.len());
    let mut local = local.iter();
    let mut rest = None;
    for (index, &len) in remote_lens.iter().enumerate() {
        let Some(region) = rest.take().or_else(|| local.next().copied()) else {
            return Err(differ(format!("piece {index} of the peer is empty"), "the other"));
        };
        if len > region.len() {
            let reason =
                format!("piece {index} of the peer has {len} bytes, this side's next {}", region.len());
            return Err(differ(reason, "this"));
        }
        pieces.push(region.slice(0..len)?);
        if len < region.len() {
            rest = Some(region.slice(len..region.len())?);
        }
    }
    Ok(pieces)
}

/// One dimension of a view that can't be merged with its neighbours.
#[derive(Clone, Copy)]
struct Axis {
    dim: usize,
    stride: usize,
}

/// Leaves out dimensions of one element, and merges each pair that walks the storage as one would.
fn merged_axes(dims: &[usize], strides: &[isize]) -> Result<Vec<Axis>, LayoutError> {
    let mut axes: Vec<Axis> = Vec::with_capacity(dims.len());
    for (index, (&dim, &stride)) in dims.iter().zip(strides).enumerate() {
        if dim == 1 {
            continue;
        }
        let stride =
            usize::try_from(stride).map_err(|_| LayoutError::NegativeStride { dim: index, stride })?;
        match axes.last_mut() {
            Some(last) if stride.checked_mul(dim) == Some(last.stride) => {
                let merged = last.dim.checked_mul(dim);
                let overflow = || LayoutError::Overflow { dims: dims.to_vec(), strides: strides.to_vec() };
                *last = Axis { dim: merged.ok_or_else(overflow)?, stride };
            }
            _ => axes.push(Axis { dim, stride }),
        }
    }
    Ok(axes)
}

/// One past the largest offset the view reaches, if it can be represented.
fn check_extent(axes: &[Axis], offset: usize) -> Option<usize> {
    let last =
        axes.iter().try_fold(offset, |at, axis| at.checked_add((axis.dim - 1).checked_mul(axis.stride)?))?;
    last.checked_add(1)
}

/// Visits the `blocks` blocks that the `outer` axes span, and merges those that touch.
fn walk(
    outer: &[Axis],
    block: usize,
    offset: usize,
    blocks: usize,
    max: usize,
) -> Result<Vec<Run>, LayoutError> {
    let mut runs: Vec<Run> = Vec::with_capacity(blocks.min(max));
    let mut index = vec![0usize; outer.len()];
    let mut at = offset;
    for _ in 0..blocks {
        let full = runs.len() == max;
        match runs.last_mut() {
            Some(last) if last.offset + last.len == at => last.len += block,
            _ if full => return Err(LayoutError::TooManyRuns),
            _ => runs.push(Run { offset: at, len: block }),
        }
        // The odometer: step the innermost axis, carry outwards. Only the step past the last block can wrap.
        for (axis, i) in outer.iter().zip(&mut index).rev() {
            *i += 1;
            at = at.wrapping_add(axis.stride);
            if *i < axis.dim {
                break;
            }
            at = at.wrapping_sub(axis.stride.wrapping_mul(axis.dim));
            *i = 0;
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(offset: usize, len: usize) -> Run {
        Run { offset, len }
    }

    /// Offsets of all elements in row-major order, the slow and obvious way.
    fn naive_gather(dims: &[usize], strides: &[isize], offset: usize) -> Vec<usize> {
        let count: usize = dims.iter().product();
        let at = |mut flat: usize| {
            let mut offset = offset;
            for (&dim, &stride) in dims.iter().zip(strides).rev() {
                offset += (flat % dim) * stride as usize;
                flat /= dim;
            }
            offset
        };
        (0..count).map(at).collect()
    }

    fn expand(runs: &[Run]) -> Vec<usize> {
        runs.iter().flat_map(|run| run.offset..run.offset + run.len).collect()
    }

    fn any_view() -> impl Strategy<Value = (Vec<usize>, Vec<isize>, usize)> {
        prop::collection::vec((0usize..5, 0isize..9), 0..5).prop_flat_map(|axes| {
            let (dims, strides) = axes.into_iter().unzip();
            (Just(dims), Just(strides), 0usize..100)
        })
    }

    /// A view as frameworks make them: a contiguous tensor, narrowed, permuted and broadcast.
    fn framework_view() -> impl Strategy<Value = (Vec<usize>, Vec<isize>, usize)> {
        let axis = (1usize..5).prop_flat_map(|dim| (Just(dim), 0..dim, any::<bool>()));
        prop::collection::vec(axis, 1..5).prop_flat_map(|axes| {
            let mut stride = 1isize;
            let mut offset = 0;
            let mut view = Vec::new();
            for &(dim, start, broadcast) in axes.iter().rev() {
                offset += start * stride as usize;
                view.push((dim - start, if broadcast && dim == 2 { 0 } else { stride }));
                stride *= dim as isize;
            }
            (Just(view).prop_shuffle(), Just(offset)).prop_map(|(view, offset)| {
                let (dims, strides) = view.into_iter().unzip();
                (dims, strides, offset)
            })
        })
    }

    proptest! {
        #[test]
        fn runs_gather_what_a_naive_loop_gathers((dims, strides, offset) in prop_oneof![any_view(), framework_view()]) {
            let runs = contiguous_runs(&dims, &strides, offset).unwrap();
            prop_assert_eq!(expand(&runs), naive_gather(&dims, &strides, offset));
            prop_assert!(runs.windows(2).all(|w| w[0].offset + w[0].len != w[1].offset), "not maximal: {:?}", runs);
        }

        #[test]
        fn disjoint_means_no_element_twice((dims, strides, offset) in prop_oneof![any_view(), framework_view()]) {
            let mut offsets = naive_gather(&dims, &strides, offset);
            let count = offsets.len();
            offsets.sort_unstable();
            offsets.dedup();
            let runs = contiguous_runs(&dims, &strides, offset).unwrap();
            prop_assert_eq!(check_disjoint(&runs).is_ok(), offsets.len() == count);
        }

        #[test]
        fn hostile_shapes_give_an_answer_quickly(
            dims in prop::collection::vec(any::<usize>(), 0..6),
            strides in prop::collection::vec(any::<isize>(), 6),
            offset in any::<usize>(),
        ) {
            if let Ok(runs) = contiguous_runs(&dims, &strides[..dims.len()], offset) {
                prop_assert!(runs.len() <= MAX_RUNS);
            }
        }

        #[test]
        fn splitting_keeps_every_byte_in_order(cuts in prop::collection::vec(1u64..50, 1..20), whole in any::<bool>()) {
            let total: u64 = cuts.iter().sum();
            let region = Region::new(Device::CPU, 4096, total).unwrap();
            let local = if whole { vec![region] } else { split_to_match(&[region], &cuts[..]).unwrap() };
            let pieces = split_to_match(&local, &cuts).unwrap();
            prop_assert_eq!(pieces.iter().map(Region::len).collect::<Vec<_>>(), cuts);
            prop_assert!(pieces.windows(2).all(|w| w[0].end() == w[1].addr()));
        }
    }

    #[test]
    fn a_contiguous_tensor_is_one_run() {
        assert_eq!(contiguous_runs(&[2, 3, 4], &[12, 4, 1], 5).unwrap(), [run(5, 24)]);
        assert_eq!(contiguous_runs(&[2, 1, 4], &[4, 77, 1], 0).unwrap(), [run(0, 8)]);
        assert_eq!(contiguous_runs(&[], &[], 3).unwrap(), [run(3, 1)]);
    }

    #[test]
    fn a_tensor_without_elements_has_no_runs_whatever_its_other_dimensions() {
        assert_eq!(contiguous_runs(&[usize::MAX, 0, usize::MAX], &[1, 1, 1], 0).unwrap(), []);
    }

    #[test]
    fn a_transpose_merges_the_one_seam_that_touches() {
        assert_eq!(contiguous_runs(&[2, 4, 3], &[12, 1, 4], 0).unwrap().len(), 23);
    }

    #[test]
    fn negative_strides_are_refused_except_where_there_is_one_element() {
        assert_eq!(contiguous_runs(&[3], &[-1], 2), Err(LayoutError::NegativeStride { dim: 0, stride: -1 }));
        assert_eq!(contiguous_runs(&[1], &[-1], 2).unwrap(), [run(2, 1)]);
    }

    #[test]
    fn huge_numbers_are_errors() {
        for (dims, strides, offset) in [
            (vec![usize::MAX, usize::MAX], vec![0, 0], 0),
            (vec![usize::MAX, 2], vec![1 << 40, 1], 0),
            (vec![2], vec![1], usize::MAX),
            (vec![1 << 40, 1 << 30], vec![1 << 30, 1], 0),
        ] {
            assert!(matches!(contiguous_runs(&dims, &strides, offset), Err(LayoutError::Overflow { .. })));
        }
        assert_eq!(contiguous_runs(&[1 << 40], &[2], 0), Err(LayoutError::TooManyRuns));
        assert_eq!(contiguous_runs(&[1 << 40], &[0], 0), Err(LayoutError::TooManyRuns));
    }

    #[test]
    fn the_most_runs_are_exactly_what_an_operation_takes() {
        assert_eq!(contiguous_runs(&[MAX_RUNS], &[2], 0).unwrap().len(), MAX_RUNS);
        assert_eq!(contiguous_runs(&[MAX_RUNS + 1], &[2], 0), Err(LayoutError::TooManyRuns));
    }

    #[test]
    fn many_tiny_runs_name_the_remedy_and_few_or_long_ones_pass() {
        let tiny: Vec<Run> = (0..4097).map(|i| run(2 * i, 1)).collect();
        let error = check_fragmentation(&tiny, 4).unwrap_err();
        assert_eq!(error, LayoutError::FragmentationLimit { runs: 4097, mean_bytes: 4 });
        assert!(error.to_string().contains(".contiguous()"));
        assert!(check_fragmentation(&tiny[..4096], 4).is_ok());
        let long: Vec<Run> = (0..4097).map(|i| run(1024 * i, 256)).collect();
        assert!(check_fragmentation(&long, 4).is_ok());
        assert!(check_fragmentation(&[], 4).is_ok());
    }

    #[test]
    fn regions_stay_inside_the_storage() {
        let ok = regions(Device::CPU, 1000, 24, &[run(0, 2), run(4, 2)], 4).unwrap();
        assert_eq!(
            ok,
            [Region::new(Device::CPU, 1000, 8).unwrap(), Region::new(Device::CPU, 1016, 8).unwrap()]
        );
        assert_eq!(
            regions(Device::CPU, 1000, 23, &[run(4, 2)], 4),
            Err(LayoutError::OutOfBounds { needed: 24, available: 23 })
        );
        assert!(regions(Device::CPU, 1000, 23, &[run(usize::MAX, 2)], 4).is_err());
        // A storage as large as the address space holds no run that ends beyond it.
        assert!(regions(Device::CPU, 1000, usize::MAX, &[run(1 << 62, 2)], 4).is_err());
    }

    #[test]
    fn pieces_that_cross_or_differ_in_bytes_are_refused() {
        let local = [Region::new(Device::CPU, 1000, 8).unwrap(), Region::new(Device::CPU, 2000, 8).unwrap()];
        for lens in [&[16u64][..], &[4, 8, 4], &[8, 7], &[8, 8, 0], &[0, 8, 8], &[u64::MAX, 17]] {
            assert!(split_to_match(&local, lens).is_err(), "{lens:?}");
        }
    }
}
