//! One transfer: its pieces, posted slice by slice, and what is known of it.

use std::rc::Rc;
use std::time::Instant;

use nixl_sys::XferRequest;

use super::agent::Generation;
use super::signs::{self, Sign};
use super::{Peer, TransferState, TransportError};
use crate::memory::push_joined;
use crate::{Device, OperationKind, Region};

/// Bytes posted at once. A post over shared memory copies on the calling thread, at 4 to 10 GB/s on the
/// machines measured, so 16 MiB hold up other operations for 2 to 4 ms, and the pause between slices is
/// below a thousandth of that.
const SLICE_BYTES: u64 = 16 << 20;
/// Pieces posted at once: each costs about 5 us in NIXL, so this too is about 5 ms.
const SLICE_PIECES: usize = 1024;
/// A transfer, posted slice by slice.
pub(super) struct Moving {
    pub(super) generation: u64,
    pub(super) peer: Rc<Peer>,
    pub(super) kind: OperationKind,
    pub(super) key: String,
    pub(super) local: Vec<Region>,
    /// What was registered for it in this generation.
    pub(super) registered: Vec<Region>,
    pub(super) pieces: Pieces,
    /// The posted slice, and how many pieces it has.
    pub(super) posted: Option<(XferRequest, usize)>,
    pub(super) state: Phase,
    /// Counted in its generation, and its memory registered there.
    pub(super) counted: bool,
    /// When to tell the peer next that this side is alive; `None` for peers that would not understand.
    pub(super) next_sign: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    InProgress,
    Complete,
    /// It failed, and nothing of it is in flight.
    FailedQuiet,
    /// It failed, but pieces posted along with the failed one may still be in flight.
    FailedUnknown,
}

impl Moving {
    /// Tells the peer from time to time that this side is still at its memory.
    pub(super) fn sign_of_life(&mut self, generation: &Generation) {
        if let Some(next) = self.next_sign
            && self.state == Phase::InProgress
            && Instant::now() >= next
        {
            generation.tell(&self.peer.name, &Sign::Alive.of(&self.key));
            self.next_sign = Some(Instant::now() + signs::EVERY);
        }
    }

    /// Tells the peer that this side will not complete the transfer.
    pub(super) fn give_up(&mut self, generation: &Generation) {
        if self.next_sign.take().is_some() {
            let sign = if self.state == Phase::FailedUnknown { Sign::Failed } else { Sign::Quiet };
            generation.tell(&self.peer.name, &sign.of(&self.key));
        }
    }

    /// Looks after the posted slice and posts the next one when that is done.
    pub(super) fn step(&mut self, generation: &Generation) -> Result<TransferState, TransportError> {
        if let Some((request, pieces)) = &self.posted {
            match generation.in_progress(&self.peer.name, request) {
                Ok(true) => return Ok(TransferState::Pending { advanced: false }),
                Ok(false) => self.posted = None,
                Err(error) => {
                    self.state = failed_with(*pieces);
                    return Err(error);
                }
            }
        }
        let before = self.pieces.position();
        let slice = self.pieces.next_slice();
        if slice.is_empty() {
            self.state = Phase::Complete;
            return Ok(TransferState::Complete);
        }
        let is_last = self.pieces.is_done();
        // The request that can't even be made leaves nothing in flight.
        self.state = Phase::FailedQuiet;
        let key = is_last.then_some(self.key.as_str());
        let posted = generation.post(&self.peer.name, self.kind, &slice, key);
        let posted = posted.inspect_err(|_| self.pieces.return_to(before))?;
        self.state = Phase::InProgress;
        match posted.in_progress {
            Ok(false) if is_last => {
                self.state = Phase::Complete;
                Ok(TransferState::Complete)
            }
            Ok(false) => Ok(TransferState::Pending { advanced: true }),
            Ok(true) => {
                self.posted = Some((posted.request, slice.len()));
                Ok(TransferState::Pending { advanced: true })
            }
            Err(error) => {
                self.state = failed_with(slice.len());
                self.posted = Some((posted.request, slice.len()));
                Err(error)
            }
        }
    }
}

/// NIXL reports the first piece that fails, and says nothing of the others (vLLM #56104 reused their memory).
/// A request of one piece has no others.
pub(super) fn failed_with(pieces: usize) -> Phase {
    if pieces <= 1 { Phase::FailedQuiet } else { Phase::FailedUnknown }
}

/// The pieces of a transfer, handed out in slices: those between one device here and one there first, then the next
/// two devices', so that no slice mixes devices. NIXL's lists are of one kind of memory each.
pub(super) struct Pieces {
    pairs: Vec<(Region, Region)>,
    at: usize,
    /// Bytes of `pairs[at]` handed out already.
    offset: u64,
}

impl Pieces {
    /// Pairs what lies here with what lies there. Pairs that follow each other on both sides become one, which
    /// saves about 5 us for each, if the peer made the whole range reachable as one, and it is registered as one
    /// here: that is `is_one`'s to say, of the ranges here and there.
    pub(super) fn new(
        local: &[Region],
        remote: &[Region],
        is_one: impl Fn(&Region, &Region) -> bool,
    ) -> Self {
        let mut pairs: Vec<(Region, Region)> = Vec::with_capacity(local.len());
        for (local, remote) in local.iter().zip(remote) {
            push_joined(&mut pairs, (*local, *remote), |(local, remote)| is_one(local, remote));
        }
        if pairs.windows(2).any(|two| devices(&two[0]) != devices(&two[1])) {
            pairs.sort_by_key(devices);
        }
        Self { pairs, at: 0, offset: 0 }
    }

    fn is_done(&self) -> bool {
        self.at == self.pairs.len()
    }

    fn position(&self) -> (usize, u64) {
        (self.at, self.offset)
    }

    /// Hands out again what was handed out since.
    fn return_to(&mut self, position: (usize, u64)) {
        (self.at, self.offset) = position;
    }

    fn next_slice(&mut self) -> Vec<(Region, Region)> {
        let mut slice = Vec::new();
        let mut room = SLICE_BYTES;
        while room > 0 && slice.len() < SLICE_PIECES && !self.is_done() {
            let pair = self.pairs[self.at];
            if self.at > 0 && !slice.is_empty() && devices(&pair) != devices(&self.pairs[self.at - 1]) {
                break;
            }
            let (local, remote) = pair;
            let end = local.len().min(self.offset.saturating_add(room));
            let range = self.offset..end;
            // Both hold `end` bytes: the pairs are of equal length.
            if let (Ok(local), Ok(remote)) = (local.slice(range.clone()), remote.slice(range)) {
                slice.push((local, remote));
            }
            room -= end - self.offset;
            self.offset = end;
            if end == local.len() {
                self.at += 1;
                self.offset = 0;
            }
        }
        slice
    }
}

/// Where a pair's bytes come from and go to.
fn devices((local, remote): &(Region, Region)) -> (Device, Device) {
    (local.device(), remote.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_follow_each_other_on_both_sides_become_one() {
        let region = |addr: u64, len: u64| Region::new(Device::CPU, addr, len).unwrap();
        let local = [region(100, 10), region(110, 10), region(120, 10), region(130, 10)];
        let remote = [region(500, 10), region(510, 10), region(600, 10), region(610, 10)];
        let pairs = |is_one: fn(&Region, &Region) -> bool| Pieces::new(&local, &remote, is_one).pairs;
        let both = [(region(100, 20), region(500, 20)), (region(120, 20), region(600, 20))];
        assert_eq!(pairs(|_, _| true), both);
        assert_eq!(pairs(|_, remote| remote.addr() < 600).len(), 3, "a range of two registrations is none");
        assert_eq!(pairs(|local, _| local.addr() > 110).len(), 3, "on either side");
        assert_eq!(pairs(|_, _| false).len(), 4);
    }

    #[test]
    fn no_slice_mixes_devices_and_the_last_one_ends_all_of_them() {
        let region = |device, addr: u64, len: u64| Region::new(device, addr, len).unwrap();
        let (cpu, one, two) = (Device::CPU, Device::cuda(0), Device::cuda(1));
        // Mixed up on both sides, as tensors of a model come.
        let sides =
            [(cpu, cpu), (one, cpu), (cpu, one), (one, cpu), (cpu, cpu), (two, one), (one, one), (one, cpu)];
        let at = |index: usize| 0x1000 * (index as u64 + 1);
        let local: Vec<Region> = sides.iter().enumerate().map(|(i, (d, _))| region(*d, at(i), 8)).collect();
        let remote: Vec<Region> = sides.iter().enumerate().map(|(i, (_, d))| region(*d, at(i), 8)).collect();
        let mut pieces = Pieces::new(&local, &remote, |_, _| true);
        let mut slices = Vec::new();
        while !pieces.is_done() {
            slices.push(pieces.next_slice());
        }
        assert_eq!(slices.len(), 5, "one for each two devices");
        for slice in &slices {
            assert!(slice.iter().all(|pair| devices(pair) == devices(&slice[0])), "{slice:?}");
        }
        let mut moved: Vec<u64> = slices
            .iter()
            .flatten()
            .map(|(local, remote)| {
                assert_eq!(local.addr(), remote.addr(), "pairs stay pairs");
                local.addr()
            })
            .collect();
        moved.sort_unstable();
        assert_eq!(moved, (0..sides.len()).map(at).collect::<Vec<_>>(), "each once");
        // A large piece that is cut goes on in the next slice, before the next device's turn.
        let local = [region(cpu, 0x1000, 8), region(one, 0x9000, SLICE_BYTES + 8), region(cpu, 0x2000, 8)];
        let mut pieces = Pieces::new(&local, &local, |_, _| true);
        let devices_of = |slice: Vec<(Region, Region)>| slice[0].0.device();
        let order: Vec<Device> =
            std::iter::from_fn(|| (!pieces.is_done()).then(|| devices_of(pieces.next_slice()))).collect();
        assert_eq!(order, [cpu, one, one]);
    }

    #[test]
    fn slices_cover_every_byte_once_and_in_order() {
        let region = |addr: u64, len: u64| Region::new(Device::CPU, addr, len).unwrap();
        let local = [region(0x1000, 5), region(0x9_0000, SLICE_BYTES * 2 + 3), region(0x8000, 1)];
        let remote = [region(0x2000, 5), region(0x100_0000_0000, SLICE_BYTES * 2 + 3), region(0x7000, 1)];
        let mut pieces = Pieces::new(&local, &remote, |_, _| true);
        let mut covered: Vec<(Region, Region)> = Vec::new();
        while !pieces.is_done() {
            let slice = pieces.next_slice();
            assert!(!slice.is_empty());
            assert!(slice.iter().map(|(local, _)| local.len()).sum::<u64>() <= SLICE_BYTES);
            covered.extend(slice);
        }
        assert!(covered.iter().all(|(local, remote)| local.len() == remote.len()));
        let total: u64 = covered.iter().map(|(local, _)| local.len()).sum();
        assert_eq!(total, SLICE_BYTES * 2 + 9);
        for (whole, side) in [(&local, 0), (&remote, 1)] {
            let mut next = whole.iter().flat_map(|region| [region.addr(), region.end()]);
            let (mut at, mut end) = (next.next().unwrap(), next.next().unwrap());
            for pair in &covered {
                let piece = if side == 0 { pair.0 } else { pair.1 };
                if at == end {
                    (at, end) = (next.next().unwrap(), next.next().unwrap());
                }
                assert_eq!(piece.addr(), at);
                at = piece.end();
            }
        }
    }
}
