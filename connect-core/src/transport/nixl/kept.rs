//! Memory that is registered for longer than one operation: its ranges ([`Kept`]), and what became of each in one
//! agent ([`Standings`]).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::memory::joined;
use crate::transport::{RegistrationId, TransportError};
use crate::{Device, Region};

/// Ranges that do not overlap, each for as long as somebody who wanted it kept is left. Each agent registers one of them
/// when an operation first needs it there.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_start: BTreeMap<(Device, u64), Holders>,
    by_id: HashMap<RegistrationId, Region>,
}

#[derive(Debug)]
struct Holders {
    region: Region,
    count: usize,
}

impl Kept {
    /// Keeps a range, or the same range for one more; says whether it does. One that overlaps another is not: NIXL would
    /// find neither reliably.
    pub(super) fn add(&mut self, id: RegistrationId, region: Region) -> bool {
        let before = self.by_start.range_mut(..(region.device(), region.end())).next_back();
        match before {
            Some((_, same)) if same.region == region => same.count += 1,
            Some((_, other)) if other.region.overlaps(&region) => return false,
            _ => {
                let key = (region.device(), region.addr());
                self.by_start.insert(key, Holders { region, count: 1 });
            }
        }
        self.by_id.insert(id, region);
        true
    }

    /// Gives a range up; it comes back if nobody else keeps it.
    pub(super) fn remove(&mut self, id: RegistrationId) -> Option<Region> {
        let region = self.by_id.remove(&id)?;
        let key = (region.device(), region.addr());
        let holders = self.by_start.get_mut(&key)?;
        holders.count -= 1;
        (holders.count == 0).then(|| self.by_start.remove(&key)).flatten().map(|holders| holders.region)
    }

    /// Regions that follow each other, as one where NIXL can take them as one.
    pub(super) fn joined(&self, regions: &[Region]) -> Vec<Region> {
        joined(regions, |region| self.is_one(region))
    }

    /// Whether a region is in one registration: within a range that is kept, or apart from all of them.
    pub(super) fn is_one(&self, region: &Region) -> bool {
        let last = self.by_start.range(..(region.device(), region.end())).next_back();
        last.is_none_or(|(_, kept)| kept.region.contains(region) || !kept.region.overlaps(region))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The range that holds all of `region`.
    pub(super) fn around(&self, region: &Region) -> Option<Region> {
        let (_, before) = self.by_start.range(..=(region.device(), region.addr())).next_back()?;
        before.region.contains(region).then_some(before.region)
    }
}

/// How long a registration that failed is not tried again. What it fails for, such as a limit on locked memory, takes
/// a person to change, and finding that out takes as long as registering.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What became of each range in one agent. `V` is what NIXL gave for it, and deregisters when it is dropped.
#[derive(Debug)]
pub(super) struct Standings<V>(HashMap<Region, Standing<V>>);

#[derive(Debug)]
struct Standing<V> {
    made: Result<V, (TransportError, Instant)>,
    /// A peer may have been told of it.
    described: bool,
}

impl<V> Default for Standings<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V> Standings<V> {
    /// Makes what is not there, and remembers a failure for a while. Says whether it was there.
    pub(super) fn ensure(
        &mut self,
        region: Region,
        now: Instant,
        make: impl FnOnce() -> Result<V, TransportError>,
    ) -> Result<bool, TransportError> {
        match self.0.get(&region).map(|standing| &standing.made) {
            Some(Ok(_)) => return Ok(true),
            Some(Err((error, since))) if now.saturating_duration_since(*since) < RETRY_AFTER => {
                return Err(error.clone());
            }
            _ => {}
        }
        let made = make();
        let result = made.as_ref().map(|_| false).map_err(Clone::clone);
        let made = made.map_err(|error| (error, now));
        self.0.insert(region, Standing { made, described: false });
        result
    }

    /// A document with that range is made.
    pub(super) fn describe(&mut self, region: &Region) {
        if let Some(standing) = self.0.get_mut(region) {
            standing.described = true;
        }
    }

    /// Gives it up. Says whether a peer may have been told of it.
    pub(super) fn remove(&mut self, region: &Region) -> bool {
        self.0.remove(region).is_some_and(|standing| standing.described)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_made_again_and_what_failed_not_at_once() {
        let (mut standings, now) = (Standings::default(), Instant::now());
        let (good, bad) = (region(100, 1), region(200, 1));
        let full = || TransportError::Resource { what: "registering", reason: "full".to_owned() };
        assert_eq!(standings.ensure(good, now, || Ok(())), Ok(false));
        assert_eq!(standings.ensure(good, now, || unreachable!()), Ok(true));

        assert_eq!(standings.ensure(bad, now, || Err(full())), Err(full()));
        let soon = now + RETRY_AFTER - Duration::from_millis(1);
        assert_eq!(standings.ensure(bad, soon, || unreachable!()), Err(full()), "the same, and at once");
        assert_eq!(standings.ensure(bad, now + RETRY_AFTER, || Ok(())), Ok(false), "later it may succeed");
        assert_eq!(standings.ensure(bad, now + RETRY_AFTER, || unreachable!()), Ok(true));

        standings.describe(&good);
        assert!(standings.remove(&good) && !standings.remove(&good) && !standings.remove(&bad));
        assert_eq!(standings.ensure(good, now, || Ok(())), Ok(false), "what was given up is made anew");
        assert!(!standings.remove(&good), "and nobody was told of it");
    }

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
    fn a_range_that_is_kept_twice_is_kept_until_both_gave_it_up() {
        let mut kept = Kept::default();
        assert!(
            kept.add(RegistrationId(1), region(100, 100)) && kept.add(RegistrationId(2), region(100, 100))
        );
        assert_eq!(kept.remove(RegistrationId(1)), None, "somebody else keeps it");
        assert_eq!(kept.remove(RegistrationId(1)), None);
        assert_eq!(kept.around(&region(150, 1)), Some(region(100, 100)));
        assert_eq!(kept.remove(RegistrationId(2)), Some(region(100, 100)));
        assert!(kept.is_empty() && kept.around(&region(150, 1)).is_none());
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
            [(2, region(199, 1)), (3, region(50, 51)), (4, region(1, 1000)), (5, region(100, 99))]
        {
            assert!(!kept.add(RegistrationId(id), other));
            assert_eq!(kept.remove(RegistrationId(id)), None);
        }
        assert!(kept.add(RegistrationId(6), region(99, 1)) && kept.add(RegistrationId(7), region(200, 1)));
    }
}
