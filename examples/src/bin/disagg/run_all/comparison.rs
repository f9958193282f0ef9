//! Steps of two implementations of one model, compared.
//!
//! Their sums are made in different orders, so logits differ a little, and a token may differ where two are nearly as
//! likely. How little is bounded and measured, and where a token may differ follows from it: nowhere else may one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::oneshot::Answer;

/// Logits may differ by this much: sums of some hundred 32-bit products, made in another order. What was seen is 6e-5,
/// with seeded weights; 2e-5 with those that were trained.
const LOGITS: f32 = 5e-4;
/// Where the best logit is above the second by more than what both may differ by, the token must be the same.
const MARGIN: f32 = 2.0 * LOGITS;

/// What a comparison of all steps came to.
#[derive(Default)]
pub(super) struct Comparison {
    requests: usize,
    tokens: usize,
    /// After a token that may differ the rest of a request has another text before it, and is left out.
    left_out: usize,
    largest_difference: f32,
    smallest_margin: Option<f32>,
    bytes: u64,
    descriptors: usize,
    transfer: Duration,
    commit: Duration,
}

impl Comparison {
    /// # Errors
    /// Logits differ by more than sums may, or a token where it may not.
    pub(super) fn add(&mut self, answer: &Answer, expected: &Answer) -> Result<()> {
        let (tokens, wanted) = (&answer.done.tokens, &expected.done.tokens);
        ensure!(tokens.len() == wanted.len(), "{} tokens instead of {}", tokens.len(), wanted.len());
        ensure!(answer.steps.len() + 1 == tokens.len(), "logits of {} steps", answer.steps.len());
        ensure!(tokens[0] == wanted[0], "another first token, though prefill made it");
        self.requests += 1;
        self.tokens += 1;
        for (at, (logits, others)) in answer.steps.iter().zip(&expected.steps).enumerate() {
            ensure!(logits.len() == others.len(), "step {at}: {} logits", logits.len());
            let differences = logits.iter().zip(others).map(|(a, b)| (a - b).abs());
            let difference = differences.max_by(f32::total_cmp).context("a vocabulary")?;
            ensure!(difference <= LOGITS, "step {at}: logits differ by {difference}");
            let margin = margin(others);
            self.largest_difference = self.largest_difference.max(difference);
            if tokens[at + 1] != wanted[at + 1] {
                ensure!(margin <= MARGIN, "step {at}: another token, with a margin of {margin}");
                self.left_out += tokens.len() - at - 1;
                break;
            }
            self.smallest_margin = Some(self.smallest_margin.map_or(margin, |least| least.min(margin)));
            self.tokens += 1;
        }
        let done = &answer.done;
        self.bytes += done.bytes;
        self.descriptors += done.descriptors;
        self.transfer += done.timings.transfer;
        self.commit += done.timings.commit;
        Ok(())
    }

    pub(super) fn print(&self) {
        let each = |all: Duration| all.as_secs_f64() * 1e3 / self.requests as f64;
        println!(
            "python     {} tokens of {} requests identical to one process, {} left out after a near tie; the largest \
             difference of a logit is {:.1e}, the smallest margin of a token {:.1e} (bounds: {LOGITS:.0e}, {MARGIN:.0e})",
            self.tokens,
            self.requests,
            self.left_out,
            self.largest_difference,
            self.smallest_margin.unwrap_or(f32::NAN)
        );
        println!(
            "python     {:.1} MB of KV in {} descriptors; for each request {:.2} ms to read it, {:.2} ms to commit",
            self.bytes as f64 / 1e6,
            self.descriptors,
            each(self.transfer),
            each(self.commit),
        );
    }
}

/// By how much the best is above the second.
fn margin(logits: &[f32]) -> f32 {
    let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for value in logits {
        if *value > best {
            (best, second) = (*value, best);
        } else {
            second = second.max(*value);
        }
    }
    best - second
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Done, Timings};

    fn answer(tokens: &[u32], steps: &[[f32; 3]]) -> Answer {
        let (tokens, logits) = (tokens.to_vec(), String::new());
        let timings = Timings::default();
        let done = Done { tokens, logits, timings, bytes: 1, descriptors: 1, recomputed: false };
        Answer { done, steps: steps.iter().map(|step| step.to_vec()).collect() }
    }

    /// What comes of three tokens and the logits of two steps, where one process made tokens 0, 2 and 1.
    fn judged(tokens: &[u32], steps: &[[f32; 3]]) -> Result<(usize, usize)> {
        let expected = answer(&[0, 2, 1], &[[0.0, 1.0, 1.0 + MARGIN / 2.0], [0.0, 2.0, 1.0]]);
        let mut comparison = Comparison::default();
        comparison.add(&answer(tokens, steps), &expected)?;
        Ok((comparison.tokens, comparison.left_out))
    }

    #[test]
    fn the_same_tokens_are_counted() {
        let steps = [[0.0, 1.0, 1.0 + MARGIN / 2.0], [0.0, 2.0, 1.0]];
        assert_eq!(judged(&[0, 2, 1], &steps).unwrap(), (3, 0));
    }

    #[test]
    fn another_token_is_allowed_at_a_near_tie_and_what_follows_is_left_out() {
        let steps = [[0.0, 1.0 + LOGITS / 2.0, 1.0], [5.0, 5.0, 5.0]];
        assert_eq!(judged(&[0, 1, 0], &steps).unwrap(), (1, 2));
    }

    #[test]
    fn another_token_without_a_near_tie_is_an_error() {
        let steps = [[0.0, 1.0, 1.0 + MARGIN / 2.0], [0.0, 2.0, 1.0]];
        assert!(judged(&[0, 2, 2], &steps).unwrap_err().to_string().contains("another token"));
        assert!(judged(&[1, 2, 1], &steps).unwrap_err().to_string().contains("first token"));
    }

    #[test]
    fn logits_that_differ_by_more_than_sums_may_are_an_error() {
        for wrong in [1.0 + 2.0 * LOGITS, f32::NAN, f32::INFINITY] {
            let steps = [[0.0, 1.0, 1.0 + MARGIN / 2.0], [0.0, 2.0, wrong]];
            assert!(judged(&[0, 2, 1], &steps).unwrap_err().to_string().contains("differ by"));
        }
        let error = judged(&[0, 2, 1], &[[0.0, 1.0, 1.0 + MARGIN / 2.0]]).unwrap_err();
        assert!(error.to_string().contains("logits of 1 steps"));
    }
}
