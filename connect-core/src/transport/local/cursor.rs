//! A position in a list of regions: [`Cursor`]. Plain numbers; nothing here touches memory.

use std::sync::Arc;

use crate::Region;

/// Walks through regions as if they were one run of bytes.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    regions: Arc<[Region]>,
    /// The region that the next byte is in.
    index: usize,
    /// Where in it.
    offset: u64,
    /// Bytes from here to the end.
    left: u64,
}

impl Cursor {
    /// Starts at the first byte. The sum of the lengths must fit a `u64`, see [`total`].
    pub(super) fn new(regions: Arc<[Region]>) -> Self {
        let left = regions.iter().map(Region::len).sum();
        Self { regions, index: 0, offset: 0, left }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next contiguous pieces, (address, length), at most `max` bytes together.
    pub(super) fn pieces(&self, max: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut offset = self.offset;
        let mut budget = max;
        self.regions[self.index..].iter().map_while(move |region| {
            let len = (region.len() - offset).min(budget);
            let piece = (len > 0).then_some((region.addr() + offset, len));
            offset = 0;
            budget -= len;
            piece
        })
    }

    /// Steps over `count` bytes, which must not be more than are left.
    pub(super) fn advance(&mut self, count: u64) {
        self.left -= count;
        self.offset += count;
        while let Some(region) = self.regions.get(self.index)
            && self.offset >= region.len()
        {
            self.offset -= region.len();
            self.index += 1;
        }
    }
}

/// The bytes of all regions; `None` when no `u64` holds them.
pub(super) fn total(regions: &[Region]) -> Option<u64> {
    regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn cursor(regions: &[(u64, u64)]) -> Cursor {
        Cursor::new(regions.iter().map(|&(a, l)| Region::new(Device::CPU, a, l).unwrap()).collect())
    }

    #[test]
    fn pieces_follow_the_regions_and_stop_at_the_limit() {
        let mut cursor = cursor(&[(100, 10), (200, 1), (300, 5)]);
        assert_eq!(cursor.left(), 16);
        assert_eq!(cursor.pieces(12).collect::<Vec<_>>(), [(100, 10), (200, 1), (300, 1)]);
        cursor.advance(4);
        assert_eq!(cursor.pieces(6).collect::<Vec<_>>(), [(104, 6)]);
        cursor.advance(6);
        assert_eq!(cursor.pieces(99).collect::<Vec<_>>(), [(200, 1), (300, 5)]);
        cursor.advance(3);
        assert_eq!(cursor.pieces(99).collect::<Vec<_>>(), [(302, 3)]);
        cursor.advance(3);
        assert_eq!(cursor.left(), 0);
        assert_eq!(cursor.pieces(99).count(), 0);
    }

    #[test]
    fn a_sum_that_no_u64_holds_is_noticed() {
        let huge = Region::new(Device::CPU, 1, u64::MAX - 1).unwrap();
        assert_eq!(total(&[huge]), Some(u64::MAX - 1));
        assert_eq!(total(&[huge, huge]), None);
    }
}
