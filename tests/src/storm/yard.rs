//! [`Yard`]: memory that tells whether somebody touches it after its operation let go of it.
//!
//! What is dropped, or handed back with an error, is filled with a value that the pattern never has, and kept
//! until the peer is gone for good. A write that comes too late is seen then; a read that comes too late brings
//! its peer bytes that the peer knows to be wrong.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use connect_core::{Region, SourceMemory, TargetMemory};

use crate::pattern;

/// What memory holds after its end. The pattern has no byte above 250.
const DEAD: u8 = 0xFD;

/// Memory of one round.
#[derive(Debug, Clone)]
pub struct Yard {
    state: Arc<Mutex<State>>,
    /// Whether memory is kept after its end. If not, it is freed in earnest: that nobody touches it then is
    /// between the transport and the kernel, which ends a process that is wrong about it.
    keeps: bool,
}

#[derive(Debug, Default)]
struct State {
    handed_out: usize,
    came_back: usize,
    dead: Vec<Vec<u8>>,
}

impl Yard {
    /// An empty yard.
    pub fn new(keeps: bool) -> Self {
        Self { state: Arc::default(), keeps }
    }

    /// Memory in pieces of these lengths: the pattern, piece `i` with `seed + i`.
    pub fn source(&self, lengths: &[usize], seed: u64) -> Plot {
        self.plot(lengths.iter().zip(seed..).map(|(len, seed)| pattern::bytes(*len, seed)).collect())
    }

    /// Memory in pieces of these lengths, to be filled.
    pub fn target(&self, lengths: &[usize]) -> Plot {
        self.plot(lengths.iter().map(|len| vec![0; *len]).collect())
    }

    fn plot(&self, pieces: Vec<Vec<u8>>) -> Plot {
        self.lock().handed_out += 1;
        Plot { pieces, yard: self.clone() }
    }

    /// Whether everything that was handed out came back.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.came_back == state.handed_out
    }

    /// Checks that nobody has touched what came back, and frees it.
    ///
    /// # Errors
    /// Somebody has.
    pub fn check(&self) -> Result<()> {
        let dead = mem::take(&mut self.lock().dead);
        for piece in dead {
            // In blocks, which even an unoptimised build compares fast.
            let touched = piece.chunks(4096).position(|block| *block != [DEAD; 4096][..block.len()]);
            ensure!(touched.is_none(), "page {touched:?} of {} bytes was written after its end", piece.len());
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory in pieces.
#[derive(Debug)]
pub struct Plot {
    pieces: Vec<Vec<u8>>,
    yard: Yard,
}

impl Plot {
    /// Where the bytes first differ from the pattern of `seed`: piece and byte.
    pub fn first_difference(&self, seed: u64) -> Option<(usize, usize)> {
        let wrong = |(index, (piece, seed)): (usize, (&Vec<u8>, u64))| {
            Some((index, pattern::first_difference(piece, seed)?))
        };
        self.pieces.iter().zip(seed..).enumerate().find_map(wrong)
    }
}

impl Drop for Plot {
    fn drop(&mut self) {
        self.pieces.iter_mut().for_each(|piece| piece.fill(DEAD));
        let mut state = self.yard.lock();
        state.came_back += 1;
        if self.yard.keeps {
            state.dead.append(&mut self.pieces);
        }
    }
}

// SAFETY: as for the Vecs inside, which are neither changed nor moved before the drop.
unsafe impl SourceMemory for Plot {
    fn regions(&self) -> Vec<Region> {
        self.pieces.iter().flat_map(SourceMemory::regions).collect()
    }
}

// SAFETY: as for the Vecs inside.
unsafe impl TargetMemory for Plot {
    fn regions(&mut self) -> Vec<Region> {
        self.pieces.iter_mut().flat_map(TargetMemory::regions).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_written_after_the_end_is_seen() {
        let yard = Yard::new(true);
        let plot = yard.source(&[100, 10_000], 7);
        assert_eq!(plot.first_difference(7), None);
        assert_eq!(plot.first_difference(8), Some((0, 0)));
        assert!(!yard.is_complete());
        drop(plot);
        assert!(yard.is_complete());
        yard.lock().dead[1][9_999] ^= 1;
        yard.check().unwrap_err();
    }
}
