//! [`Pieces`]: the memory that is moved, and whether what arrived is right. The only unsafe code here.

use std::sync::Arc;

use anyhow::{Result, ensure};
use connect_core::{Device, Region, SourceMemory, TargetMemory};

/// Sources repeat their content after so many bytes: a prime, so that a piece that lands in another's place shows.
const PERIOD: usize = 251;

/// One byte is stamped in each page, so that an operation's arrival can be checked without touching all of a
/// gibibyte between any two operations.
const PAGE: usize = 4096;

/// What a target holds before the first operation: a byte that no source has.
const EMPTY: u8 = 255;

/// A buffer cut into pieces of equal length that do not adjoin.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    size: usize,
    /// From one piece's beginning to the next one's.
    stride: usize,
    count: usize,
}

impl Pieces {
    /// A source: `count` pieces of `size` bytes.
    pub fn source(size: usize, count: usize) -> Self {
        let mut pieces = Self::target(size, count);
        let len = pieces.bytes.len();
        let mut filled = len.min(PERIOD);
        for (at, byte) in pieces.bytes[..filled].iter_mut().enumerate() {
            *byte = at as u8;
        }
        // Doubling keeps the period, and fills a gibibyte in a fraction of a second.
        while filled < len {
            let more = (filled / PERIOD * PERIOD).min(len - filled);
            pieces.bytes.copy_within(..more, filled);
            filled += more;
        }
        pieces
    }

    /// A target that fits such a source, with nothing in it.
    pub fn target(size: usize, count: usize) -> Self {
        let stride = if count == 1 { size } else { 2 * size };
        Self { bytes: vec![EMPTY; stride * count], size, stride, count }
    }

    /// The whole buffer: address and length.
    pub fn whole(&mut self) -> (usize, usize) {
        (self.bytes.as_mut_ptr() as usize, self.bytes.len())
    }

    /// Address and length of each piece.
    pub fn spots(&mut self) -> Vec<(usize, usize)> {
        let first = self.bytes.as_mut_ptr() as usize;
        (0..self.count).map(|index| (first + index * self.stride, self.size)).collect()
    }

    /// The bytes of each piece, to write.
    pub fn slices_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let size = self.size;
        self.bytes.chunks_mut(self.stride).map(move |chunk| &mut chunk[..size])
    }

    /// The bytes of each piece.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.stride).map(|chunk| &chunk[..self.size])
    }

    /// Damages a byte in each page of a target, before an operation.
    pub fn stamp(&mut self) {
        for piece in self.slices_mut() {
            piece.iter_mut().step_by(PAGE).for_each(|byte| *byte = EMPTY);
            if let Some(last) = piece.last_mut() {
                *last = EMPTY;
            }
        }
    }

    /// Checks the stamped bytes after an operation.
    ///
    /// # Errors
    /// Something did not arrive.
    pub fn check_stamps(&self) -> Result<()> {
        for (index, piece) in self.slices().enumerate() {
            let is_right = |at: usize| piece[at] == ((index * self.stride + at) % PERIOD) as u8;
            let arrived = (0..piece.len()).step_by(PAGE).all(is_right) && is_right(piece.len() - 1);
            ensure!(arrived, "wrong bytes in piece {index}");
        }
        Ok(())
    }

    /// Checks every byte, at the end of a round.
    ///
    /// # Errors
    /// A byte is wrong.
    pub fn check(&self) -> Result<()> {
        // Long enough for the comparison to be as fast as memory is.
        let expected: Vec<u8> = (0..PERIOD * 261).map(|at| (at % PERIOD) as u8).collect();
        let block = expected.len() - PERIOD;
        for (index, piece) in self.slices().enumerate() {
            for (number, part) in piece.chunks(block).enumerate() {
                let phase = (index * self.stride + number * block) % PERIOD;
                ensure!(part == &expected[phase..phase + part.len()], "wrong bytes in piece {index}");
            }
        }
        Ok(())
    }

    fn regions_of(&self, first: u64) -> Vec<Region> {
        let at = |index: usize| first + (index * self.stride) as u64;
        (0..self.count)
            .filter_map(|index| Region::new(Device::CPU, at(index), self.size as u64).ok())
            .collect()
    }
}

// SAFETY: the bytes live on the heap and stay there when the value moves; nobody else can reach them while the
// operation owns the value; the pieces do not overlap, and bytes take any value.
unsafe impl TargetMemory for Pieces {
    fn regions(&mut self) -> Vec<Region> {
        let first = self.bytes.as_mut_ptr() as u64;
        self.regions_of(first)
    }
}

/// A source that many offers share.
#[derive(Debug, Clone)]
pub struct Source(Arc<Pieces>);

impl From<Pieces> for Source {
    fn from(pieces: Pieces) -> Self {
        Self(Arc::new(pieces))
    }
}

// SAFETY: the bytes live on the heap of the Arc's value, which is never reached mutably: the field is private,
// and nothing in this file writes through it.
unsafe impl SourceMemory for Source {
    fn regions(&self) -> Vec<Region> {
        self.0.regions_of(self.0.bytes.as_ptr() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(size: usize, count: usize) -> Pieces {
        let (source, mut target) = (Pieces::source(size, count), Pieces::target(size, count));
        for (from, to) in source.slices().zip(target.slices_mut()) {
            to.copy_from_slice(from);
        }
        target
    }

    #[test]
    fn what_arrived_is_right_and_what_did_not_is_not() {
        for (size, count) in [(1, 1), (250, 1), (251, 3), (4096, 5), (100_000, 2), (1 << 20, 1)] {
            copied(size, count).check().unwrap();
            copied(size, count).check_stamps().unwrap();
            assert!(Pieces::target(size, count).check().is_err());
            assert!(Pieces::target(size, count).check_stamps().is_err());
        }
    }

    #[test]
    fn a_stamp_is_noticed_until_the_next_operation() {
        let mut target = copied(10_000, 2);
        target.stamp();
        assert!(target.check_stamps().is_err());
        assert!(target.check().is_err());
    }

    #[test]
    fn a_single_wrong_byte_between_two_stamps_is_found_at_the_end() {
        let mut target = copied(10_000, 1);
        target.bytes[5000] ^= 1;
        target.check_stamps().unwrap();
        assert!(target.check().is_err());
    }

    #[test]
    fn pieces_do_not_adjoin() {
        let spots = Pieces::target(100, 3).spots();
        assert!(spots.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
    }
}
