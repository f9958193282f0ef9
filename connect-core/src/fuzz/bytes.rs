//! Input of a fuzzer taken apart: [`Bytes`] never ends, it only becomes zeros.

/// Takes values off the front of an input.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As many as asked for, or what is left.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Small, large, or near a power of two: where arithmetic goes wrong.
    pub(crate) fn number(&mut self) -> u64 {
        let tag = self.byte();
        match tag {
            0..=199 => u64::from(tag % 64),
            200..=219 => u64::from(u16::from_le_bytes(self.array())),
            220..=239 => (1u64 << (self.byte() % 64)).wrapping_add(u64::from(tag)).wrapping_sub(230),
            _ => u64::from_le_bytes(self.array()),
        }
    }
}
