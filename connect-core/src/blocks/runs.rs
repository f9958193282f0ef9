//! Which blocks are free: [`FreeRuns`].

use std::collections::BTreeMap;

/// Free numbers, as runs. Blocks that follow each other move as one piece, so runs are kept whole where they can be.
#[derive(Debug)]
pub(super) struct FreeRuns {
    /// Where each run begins, and its length. No two touch.
    runs: BTreeMap<u32, u32>,
    free: u32,
}

impl FreeRuns {
    /// All of `0..count`.
    pub(super) fn new(count: u32) -> Self {
        Self { runs: BTreeMap::from([(0, count)]), free: count }
    }

    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Takes `count`, in as few runs as it can: out of the shortest run that has so many, or else the longest ones.
    /// `None` when there are not so many.
    pub(super) fn take(&mut self, count: u32) -> Option<Vec<u32>> {
        if count > self.free {
            return None;
        }
        let mut taken = Vec::with_capacity(count as usize);
        while (taken.len() as u32) < count {
            let left = count - taken.len() as u32;
            let fitting = self.runs.iter().filter(|(_, len)| **len >= left).min_by_key(|(_, len)| **len);
            let (&start, &len) = fitting.or_else(|| self.runs.iter().max_by_key(|(_, len)| **len))?;
            let some = left.min(len);
            self.runs.remove(&start);
            if some < len {
                self.runs.insert(start + some, len - some);
            }
            taken.extend(start..start + some);
        }
        self.free -= count;
        Some(taken)
    }

    /// Takes these; if one of them is taken already, or there is none of its number, says which and takes nothing.
    pub(super) fn take_these(&mut self, blocks: &[u32]) -> Result<(), u32> {
        for (at, block) in blocks.iter().enumerate() {
            let run = self.runs.range(..=*block).next_back().map(|(start, len)| (*start, *len));
            let Some((start, len)) = run.filter(|(start, len)| block - start < *len) else {
                self.give_back(&blocks[..at]);
                return Err(*block);
            };
            self.runs.remove(&start);
            if start < *block {
                self.runs.insert(start, block - start);
            }
            if block + 1 < start + len {
                self.runs.insert(block + 1, start + len - block - 1);
            }
            self.free -= 1;
        }
        Ok(())
    }

    /// These were taken, and are free again.
    pub(super) fn give_back(&mut self, blocks: &[u32]) {
        for block in blocks {
            let before = self.runs.range(..block).next_back().map(|(start, len)| (*start, *len));
            let after = self.runs.get(&(block + 1)).copied();
            let mut run = (*block, 1);
            if let Some((start, len)) = before
                && start + len == *block
            {
                run = (start, len + 1);
            }
            if let Some(len) = after {
                self.runs.remove(&(block + 1));
                run.1 += len;
            }
            self.runs.insert(run.0, run.1);
            self.free += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_stay_whole_where_they_can() {
        let mut free = FreeRuns::new(10);
        assert_eq!(free.take(4), Some(vec![0, 1, 2, 3]));
        assert_eq!(free.take(4), Some(vec![4, 5, 6, 7]));
        free.give_back(&[1, 2]);
        assert_eq!(
            free.take(2),
            Some(vec![1, 2]),
            "the shortest that fits; 8 and 9 fit as well, and came later"
        );
        free.give_back(&[0, 1, 2, 3, 6]);
        assert_eq!(free.take(6), Some(vec![0, 1, 2, 3, 8, 9]), "the longest first, and then what fits");
        assert_eq!((free.free(), free.take(2)), (1, None));
        assert_eq!(free.take(1), Some(vec![6]));
        assert_eq!(free.take(0), Some(Vec::new()));
    }

    #[test]
    fn what_is_taken_can_t_be_taken_again_and_then_nothing_is() {
        let mut free = FreeRuns::new(4);
        assert_eq!(free.take_these(&[2, 0]), Ok(()));
        assert_eq!(free.take_these(&[1, 2]), Err(2));
        assert_eq!(free.take_these(&[1, 4]), Err(4));
        assert_eq!(free.take_these(&[1, 1]), Err(1));
        assert_eq!((free.free(), free.take_these(&[3, 1])), (2, Ok(())));
    }

    proptest! {
        /// As a plain set would do it.
        #[test]
        fn free_blocks_are_counted_and_handed_out_once(steps in prop::collection::vec((any::<bool>(), 0u32..9), 0..60)) {
            let (mut runs, mut set) = (FreeRuns::new(32), (0..32).collect::<BTreeSet<u32>>());
            let mut out: Vec<Vec<u32>> = Vec::new();
            for (take, n) in steps {
                if take {
                    match runs.take(n) {
                        Some(blocks) => {
                            prop_assert_eq!(blocks.len() as u32, n);
                            for block in &blocks { prop_assert!(set.remove(block)); }
                            out.push(blocks);
                        }
                        None => prop_assert!(n as usize > set.len()),
                    }
                } else if !out.is_empty() {
                    let blocks = out.swap_remove(n as usize % out.len());
                    set.extend(&blocks);
                    runs.give_back(&blocks);
                }
                prop_assert_eq!(runs.free() as usize, set.len());
                let ends: Vec<(u32, u32)> = runs.runs.iter().map(|(start, len)| (*start, start + len)).collect();
                prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "no two touch");
            }
        }
    }
}
