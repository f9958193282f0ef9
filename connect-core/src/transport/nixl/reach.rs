//! Which ranges a peer made reachable: [`Reach`].

use super::blob::RemoteRegion;

/// The regions of a blob, sorted so that a range is found in logarithmic time: a document may name 65,536
/// ranges of as many regions.
#[derive(Debug)]
pub(super) struct Reach(Vec<Sorted>);

/// A region, and how far it and those before it reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sorted {
    memory_type: u32,
    device: u64,
    addr: u64,
    /// The furthest end of this region and of those of its memory and device that begin before it.
    furthest: u64,
}

impl Reach {
    pub(super) fn new(regions: &[RemoteRegion]) -> Self {
        let sorted = |region: &RemoteRegion| Sorted {
            memory_type: region.memory_type,
            device: region.device,
            addr: region.addr,
            furthest: region.addr.saturating_add(region.len),
        };
        let mut all: Vec<Sorted> = regions.iter().map(sorted).collect();
        all.sort_unstable();
        for i in 1..all.len() {
            let before = all[i - 1];
            if (before.memory_type, before.device) == (all[i].memory_type, all[i].device) {
                all[i].furthest = all[i].furthest.max(before.furthest);
            }
        }
        Self(all)
    }

    /// Whether one region holds the whole range: of those that begin at or before it, the one that reaches
    /// furthest. A range that wraps around is in none.
    pub(super) fn covers(&self, memory_type: u32, device: u64, addr: u64, len: u64) -> bool {
        let after = self.0.partition_point(|region| {
            (region.memory_type, region.device, region.addr) <= (memory_type, device, addr)
        });
        let Some(last) = after.checked_sub(1).map(|at| self.0[at]) else { return false };
        (last.memory_type, last.device) == (memory_type, device)
            && addr.checked_add(len).is_some_and(|end| end <= last.furthest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn remote(addr: u64, len: u64) -> RemoteRegion {
        RemoteRegion { memory_type: 0, addr, len, device: 0 }
    }

    #[test]
    fn a_range_is_covered_by_the_region_that_holds_all_of_it() {
        let reach = Reach::new(&[remote(0x1000, 4096), remote(0x9000, 16), remote(0x2000, 16)]);
        let covers = |addr, len| reach.covers(0, 0, addr, len);
        assert!(covers(0x1000, 4096) && covers(0x1800, 16) && covers(0x9000, 16) && covers(0x200f, 1));
        assert!(!covers(0xfff, 1) && !covers(0x1800, 4096) && !covers(0x8fff, 2) && !covers(0x9010, 1));
        // Adjacent regions are two registrations: an engine takes no range across them.
        assert!(!covers(0x1fff, 2));
        assert!(!covers(0x1800, u64::MAX) && !covers(u64::MAX, 4096));
        assert!(!reach.covers(1, 0, 0x1800, 16) && !reach.covers(0, 1, 0x1800, 16));
    }

    proptest! {
        /// As a search through all regions would say, whatever overlaps.
        #[test]
        fn p5_the_sorted_search_says_what_a_plain_one_says(
            regions in prop::collection::vec((0u64..64, 1u64..32, 0u32..2, 0u64..2), 0..20),
            addr in 0u64..64, len in 1u64..32, memory_type in 0u32..2, device in 0u64..2,
        ) {
            let remote = |&(addr, len, memory_type, device): &_| RemoteRegion { memory_type, addr, len, device };
            let regions: Vec<RemoteRegion> = regions.iter().map(remote).collect();
            let plain = regions.iter().any(|region| {
                (region.memory_type, region.device) == (memory_type, device)
                    && region.addr <= addr
                    && addr + len <= region.addr + region.len
            });
            prop_assert_eq!(Reach::new(&regions).covers(memory_type, device, addr, len), plain);
        }
    }
}
