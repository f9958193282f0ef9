//! Whether it pays to look for something without a pause: [`Trial`], for one thread, and [`Patience`], for callers.
//!
//! To look costs processor time for as long as it lasts; to sleep instead costs some too, 10 to 25 us on the virtual
//! machines measured, and makes the wait longer. Which is better can't be judged from outside. A peer's small read over
//! NIXL waits for the other side to look, so where that sleeps, the peer's next step takes long, and looking would seem
//! to be in vain. So it is tried out now and then, as Linux does for virtual machines (its halt polling).

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A look in vain costs as much as eight sleeps that were avoided gain.
const HIT: u32 = 1;
const MISS: u32 = 8;
/// Enough for two looks in vain among many that were not.
const BEST: u32 = 16;
/// What a trial begins with: the first look in vain ends it.
const TRIAL: u32 = 4;
/// How many waits are slept through before the next trial. At 1,000 operations a second, where it fails, one look of
/// 500 us costs half a percent of a core.
pub(crate) const BETWEEN_TRIALS: u32 = 128;

/// Keeps the books on whether looking pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trial {
    /// What looking gained lately, less what it cost.
    gain: u32,
    /// Waits since that was nothing.
    slept_through: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Self { gain: TRIAL, slept_through: 0 }
    }
}

impl Trial {
    /// Whether to look for what comes next.
    pub(crate) fn pays(&self) -> bool {
        self.gain > 0
    }

    /// A wait is over. It was short if looking would have found its end before giving up.
    pub(crate) fn learn(&mut self, was_short: bool) {
        if self.gain == 0 {
            self.slept_through += 1;
            if self.slept_through == BETWEEN_TRIALS {
                *self = Self::default();
            }
        } else if was_short {
            self.gain = (self.gain + HIT).min(BEST);
        } else {
            self.gain = self.gain.saturating_sub(MISS);
        }
    }
}

/// A [`Trial`] of many threads: the callers of one connector that block.
#[derive(Debug, Default)]
pub(crate) struct Patience(Mutex<Trial>);

impl Patience {
    pub(crate) fn pays(&self) -> bool {
        self.lock().pays()
    }

    pub(crate) fn learn(&self, was_short: bool) {
        self.lock().learn(was_short);
    }

    fn lock(&self) -> MutexGuard<'_, Trial> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks, of 1,000 waits that are short or not, in turn.
    fn looks(waits: &[bool]) -> usize {
        let mut trial = Trial::default();
        let looks = waits.iter().cycle().take(2000).map(|was_short| {
            let pays = trial.pays();
            trial.learn(*was_short);
            pays
        });
        looks.skip(1000).filter(|looks| *looks).count()
    }

    #[test]
    fn it_looks_while_that_finds_something_nearly_always() {
        assert_eq!(looks(&[true]), 1000);
        let mut mostly = vec![true; 20];
        mostly.push(false);
        assert_eq!(looks(&mostly), 1000);
        for waits in [&[false][..], &[true, false], &[true, true, true, false]] {
            assert!(looks(waits) <= 1000 / 25, "{waits:?}: {}", looks(waits));
        }
    }

    #[test]
    fn a_peer_that_waits_for_this_side_is_found_out() {
        let mut trial = Trial::default();
        trial.learn(false);
        assert!(!trial.pays());
        // Waits are short while it looks, and long because it sleeps.
        for _ in 0..2 * BETWEEN_TRIALS {
            trial.learn(trial.pays());
        }
        assert!(trial.pays());
    }
}
