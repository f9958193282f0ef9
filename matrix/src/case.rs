//! [`Case`]: one tensor that travels, and where its bytes lie on either side.

use anyhow::{Result, ensure};
use connect_core::DType;
use connect_tests::pattern;

/// Rows of consecutive elements, in two dimensions so that a view of them can be transposed.
pub const SHAPE: [usize; 3] = [2, 3, 512];

/// What the strided view is cut from. Its first two dimensions are exchanged, so that the rows of the view are not in
/// the order of memory.
pub const BASE: [usize; 3] = [SHAPE[1], SHAPE[0], 768];

/// Where in the last dimension of the base the view begins.
pub const START: usize = 128;

const ROWS: usize = SHAPE[0] * SHAPE[1];

/// How one side's tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// In one piece.
    Contiguous,
    /// A view of a part of a larger tensor, transposed: its rows are pieces in another order, with gaps.
    Strided,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Contiguous, Self::Strided];

    /// Its name, in the protocol and in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Strided => "strided",
        }
    }

    /// The layout of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.name() == name)
    }
}

/// One side's tensor.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The type of its elements.
    pub dtype: DType,
    /// How it lies in memory.
    pub layout: Layout,
    /// What its content follows from.
    pub seed: u64,
}

impl Case {
    /// The bytes that travel, in row-major order: the pattern, or its lowest bits as truth values.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = pattern::bytes(self.len(SHAPE), self.seed);
        if self.dtype == DType::BOOL {
            bytes.iter_mut().for_each(|byte| *byte &= 1);
        }
        bytes
    }

    /// The shape, as envelopes have it.
    pub fn shape(&self) -> Vec<u64> {
        SHAPE.map(|dim| dim as u64).to_vec()
    }

    /// A base with the content at the view's place, and zeros elsewhere.
    pub fn base(&self) -> Vec<u8> {
        let (mut base, bytes) = (self.zeros(), self.bytes());
        for (row, content) in self.rows().zip(bytes.chunks(self.row_len())) {
            base[row..][..content.len()].copy_from_slice(content);
        }
        base
    }

    /// A base without content.
    pub fn zeros(&self) -> Vec<u8> {
        vec![0; self.len(BASE)]
    }

    /// Bytes of a row of the view.
    pub fn row_len(&self) -> usize {
        self.len(SHAPE) / ROWS
    }

    /// Where in the base the rows of the view begin, in row-major order of the view.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        let row_len = self.len(BASE) / ROWS;
        let start = row_len * START / BASE[2];
        let row = move |row| (row % SHAPE[1]) * SHAPE[0] + row / SHAPE[1];
        (0..ROWS).map(move |index| row(index) * row_len + start)
    }

    /// Makes sure that `bytes` are what travels, to the last bit.
    ///
    /// # Errors
    /// They are not.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        let wanted = self.bytes();
        let wrong = wanted.iter().zip(bytes).position(|(wanted, found)| wanted != found);
        ensure!(bytes.len() == wanted.len(), "{} bytes instead of {}", bytes.len(), wanted.len());
        ensure!(wrong.is_none(), "byte {wrong:?} of {} is wrong", bytes.len());
        Ok(())
    }

    /// The same for a base: the content at the view's place, and nothing elsewhere.
    ///
    /// # Errors
    /// It is another.
    pub fn check_base(&self, base: &[u8]) -> Result<()> {
        let wrong = self.base().iter().zip(base).position(|(wanted, found)| wanted != found);
        ensure!(base.len() == self.len(BASE), "the base has {} bytes", base.len());
        ensure!(wrong.is_none(), "byte {wrong:?} of the base is wrong");
        Ok(())
    }

    fn len(&self, shape: [usize; 3]) -> usize {
        shape.iter().product::<usize>() * self.dtype.bits() as usize / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_the_view_lie_apart_and_in_another_order() {
        let case = Case { dtype: DType::I16, layout: Layout::Strided, seed: 5 };
        let rows: Vec<usize> = case.rows().collect();
        assert_eq!(rows, [256, 3328, 6400, 1792, 4864, 7936]);
        let (bytes, mut base) = (case.bytes(), case.base());
        assert_eq!(base[3328..][..1024], bytes[1024..2048]);
        case.check(&bytes).expect("the content is the content");
        case.check_base(&base).expect("the base has it");
        base[0] = 1;
        assert!(case.check_base(&base).is_err() && case.check(&bytes[1..]).is_err());
    }
}
