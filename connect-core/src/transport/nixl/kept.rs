//! [`Kept`]: memory that is registered for longer than one operation, by range.

use std::collections::{BTreeMap, HashMap};

use crate::memory::joined;
use crate::transport::RegistrationId;
use crate::{Device, Region};

/// Ranges that do not overlap. Each agent registers one of them when an operation first needs it there.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_start: BTreeMap<(Device, u64), Region>,
    by_id: HashMap<RegistrationId, Region>,
}

impl Kept {
    /// Keeps a range; says whether it does. One that overlaps another is not: NIXL would find neither reliably.
    pub(super) fn add(&mut self, id: RegistrationId, region: Region) -> bool {
        let before = self.by_start.range(..(region.device(), region.end())).next_back();
        if before.is_some_and(|(_, other)| other.overlaps(&region)) {
            return false;
        }
        self.by_start.insert((region.device(), region.addr()), region);
        self.by_id.insert(id, region);
        true
    }

    pub(super) fn remove(&mut self, id: RegistrationId) -> Option<Region> {
        let region = self.by_id.remove(&id)?;
        self.by_start.remove(&(region.device(), region.addr()))
    }

    /// Regions that follow each other, as one where NIXL can take them as one.
    pub(super) fn joined(&self, regions: &[Region]) -> Vec<Region> {
        joined(regions, |region| self.is_one(region))
    }

    /// Whether a region is in one registration: within a range that is kept, or apart from all of them.
    pub(super) fn is_one(&self, region: &Region) -> bool {
        let last = self.by_start.range(..(region.device(), region.end())).next_back();
        last.is_none_or(|(_, kept)| kept.contains(region) || !kept.overlaps(region))
    }

    /// The range that holds all of `region`.
    pub(super) fn around(&self, region: &Region) -> Option<Region> {
        let (_, before) = self.by_start.range(..=(region.device(), region.addr())).next_back()?;
        before.contains(region).then_some(*before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(addr: u64, len: u64) -> Region {
        Region::new(Device::CPU, addr, len).unwrap()
    }

    #[test]
    fn a_region_is_found_in_the_range_that_holds_all_of_it() {
        let mut kept = Kept::default();
        assert!(kept.add(RegistrationId(1), region(100, 100)));
        assert!(kept.add(RegistrationId(2), region(200, 50)));
        assert!(kept.add(RegistrationId(3), Region::new(Device::cuda(0), 100, 100).unwrap()));
        for inside in [region(100, 100), region(100, 1), region(150, 50), region(199, 1)] {
            assert_eq!(kept.around(&inside), Some(region(100, 100)));
        }
        assert_eq!(kept.around(&region(200, 1)), Some(region(200, 50)));
        for outside in [region(99, 2), region(199, 2), region(250, 1), region(1, 1000)] {
            assert_eq!(kept.around(&outside), None);
        }
        assert_eq!(kept.remove(RegistrationId(1)), Some(region(100, 100)));
        assert_eq!(kept.remove(RegistrationId(1)), None);
        assert_eq!(kept.around(&region(150, 1)), None);
    }

    #[test]
    fn regions_are_joined_within_a_range_or_outside_of_all_and_never_across() {
        let mut kept = Kept::default();
        assert!(kept.add(RegistrationId(1), region(100, 100)));
        assert!(kept.add(RegistrationId(2), region(200, 50)));
        let pieces = [
            region(80, 10),
            region(90, 10),
            region(100, 50),
            region(150, 50),
            region(200, 10),
            region(210, 40),
        ];
        let after = [region(250, 1), region(251, 9)];
        let all = [&pieces[..], &after].concat();
        assert_eq!(kept.joined(&all), [region(80, 20), region(100, 100), region(200, 50), region(250, 10)]);
        assert!(kept.is_one(&region(120, 80)) && kept.is_one(&region(1, 99)) && kept.is_one(&region(250, 9)));
        for across in [region(99, 2), region(199, 2), region(249, 2), region(1, 1000), region(90, 120)] {
            assert!(!kept.is_one(&across), "{across:?}");
        }
    }

    #[test]
    fn ranges_that_overlap_are_not_kept_side_by_side() {
        let mut kept = Kept::default();
        assert!(kept.add(RegistrationId(1), region(100, 100)));
        for (id, other) in
            [(2, region(199, 1)), (3, region(50, 51)), (4, region(1, 1000)), (5, region(100, 100))]
        {
            assert!(!kept.add(RegistrationId(id), other));
            assert_eq!(kept.remove(RegistrationId(id)), None);
        }
        assert!(kept.add(RegistrationId(6), region(99, 1)) && kept.add(RegistrationId(7), region(200, 1)));
    }
}
