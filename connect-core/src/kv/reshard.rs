//! Which KV heads go where when the two sides split a model differently: arithmetic only.
//!
//! A model whose attention is split over `width` ranks has its KV heads spread over them in order; with more ranks than
//! heads each head is on several. A rank of the taking side needs the heads it has from whichever ranks of the giving
//! side have them.

use std::ops::Range;

/// One run of heads that goes from one rank to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSlice {
    /// The giving rank. Where several have the heads, their readers are spread over those.
    pub from_rank: u32,
    /// Which of that rank's own heads.
    pub from_heads: Range<u32>,
    /// Which of the taking rank's own heads they become.
    pub to_heads: Range<u32>,
}

/// The heads that one rank has, of all.
///
/// `None` for a split that can't be: heads and ranks must divide one another.
pub fn heads_of(kv_heads: u32, width: u32, rank: u32) -> Option<Range<u32>> {
    if kv_heads == 0 || width == 0 || rank >= width {
        return None;
    }
    if kv_heads.is_multiple_of(width) {
        let each = kv_heads / width;
        return Some(rank * each..(rank + 1) * each);
    }
    // One head each, and each on as many ranks.
    let copies = width.is_multiple_of(kv_heads).then(|| width / kv_heads)?;
    Some(rank / copies..rank / copies + 1)
}

/// What rank `to_rank` of `to_width` takes from each rank of `from_width`, in the order of its own heads.
///
/// ```
/// use connect_core::kv::reshard::{HeadSlice, plan};
///
/// // 8 heads on 2 ranks, taken by rank 1 of 4: the upper half of what rank 0 has.
/// let slices = plan(8, 2, 4, 1).unwrap();
/// assert_eq!(slices, [HeadSlice { from_rank: 0, from_heads: 2..4, to_heads: 0..2 }]);
/// // And by a single rank: everything, from both.
/// assert_eq!(plan(8, 2, 1, 0).unwrap().len(), 2);
/// ```
///
/// `None` for splits that can't be.
pub fn plan(kv_heads: u32, from_width: u32, to_width: u32, to_rank: u32) -> Option<Vec<HeadSlice>> {
    let wanted = heads_of(kv_heads, to_width, to_rank)?;
    // Several givers of one head take turns, so that not all takers read from the first.
    let copies = if from_width > kv_heads { from_width / kv_heads } else { 1 };
    heads_of(kv_heads, from_width, 0)?;
    let mut slices: Vec<HeadSlice> = Vec::new();
    let mut next = wanted.start;
    while next < wanted.end {
        let first = (0..from_width)
            .find(|rank| heads_of(kv_heads, from_width, *rank).is_some_and(|heads| heads.contains(&next)))?;
        let from_rank = first + to_rank % copies;
        let has = heads_of(kv_heads, from_width, from_rank)?;
        let end = has.end.min(wanted.end);
        slices.push(HeadSlice {
            from_rank,
            from_heads: next - has.start..end - has.start,
            to_heads: next - wanted.start..end - wanted.start,
        });
        next = end;
    }
    Some(slices)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each head that a rank has comes to it once, from a rank that has it.
        #[test]
        fn every_head_arrives_once_and_from_who_has_it(heads in 0u32..5, from in 0u32..6, to in 0u32..6, rank in 0u32..32) {
            let (heads, from, to) = (1 << heads, 1 << from, 1 << to);
            let rank = rank % to;
            let slices = plan(heads, from, to, rank).unwrap();
            let wanted = heads_of(heads, to, rank).unwrap();
            let mut arrived = Vec::new();
            for slice in slices {
                let has = heads_of(heads, from, slice.from_rank).unwrap();
                prop_assert_eq!(slice.from_heads.len(), slice.to_heads.len());
                prop_assert!(has.start + slice.from_heads.end <= has.end);
                for (there, here) in slice.from_heads.zip(slice.to_heads) {
                    prop_assert_eq!(has.start + there, wanted.start + here);
                    arrived.push(here);
                }
            }
            prop_assert_eq!(arrived, (0..wanted.len() as u32).collect::<Vec<_>>());
        }

        /// All ranks together have every head, each as often as any other.
        #[test]
        fn a_split_has_every_head(heads in 1u32..64, width in 1u32..64) {
            let all: Option<Vec<_>> = (0..width).map(|rank| heads_of(heads, width, rank)).collect();
            if let Some(all) = all {
                let count = |head: u32| all.iter().filter(|range| range.contains(&head)).count();
                prop_assert!((0..heads).all(|head| count(head) == count(0) && count(head) > 0));
            } else {
                prop_assert!(heads % width != 0 && width % heads != 0);
            }
        }
    }

    #[test]
    fn readers_of_a_head_that_several_have_are_spread_over_them() {
        // 2 heads on 8 ranks, 4 each; taken by 4 ranks, 2 for each head.
        let from: Vec<u32> = (0..4).map(|rank| plan(2, 8, 4, rank).unwrap()[0].from_rank).collect();
        assert_eq!(from, [0, 1, 6, 7]);
        assert_eq!(plan(6, 4, 2, 0), None, "six heads can't be on four ranks");
        assert_eq!(heads_of(8, 4, 4), None);
    }
}
