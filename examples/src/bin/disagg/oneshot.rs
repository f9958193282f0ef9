//! The baseline: the same model in one process, without any hand-off.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::engine::{CHUNK_TOKENS, Setup};
use crate::model::Model;
use crate::wire::{Done, Timings};

/// One prompt to be completed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    /// Through the prompt chunk by chunk, as prefill does with that mode: then logits are equal to the bit.
    #[serde(default)]
    pub(crate) chunked: bool,
    /// With the logits of each step.
    #[serde(default)]
    pub(crate) steps: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    pub(crate) done: Done,
    /// The logits of each step after the prompt, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<Vec<f32>>,
}

/// Answers each line of standard input with one line.
pub(crate) fn run(setup: &Setup) -> Result<()> {
    let model = setup.load()?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let done = complete(&model, &serde_json::from_str(&line?)?)?;
        serde_json::to_writer(&mut out, &done)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

fn complete(model: &Model, ask: &Ask) -> Result<Answer> {
    let started = Instant::now();
    let mut cache = model.cache();
    let size = if ask.chunked { CHUNK_TOKENS } else { ask.prompt.len().max(1) };
    let (mut tokens, mut steps) = (Vec::new(), Vec::new());
    for chunk in ask.prompt.chunks(size) {
        tokens = vec![model.forward(chunk, &mut cache, |_, _| Ok(()))?.best()];
    }
    let mut digest = blake3::Hasher::new();
    let mut timings = Timings { prefill: started.elapsed(), ..Timings::default() };
    while tokens.len() < ask.max_tokens {
        let logits = model.forward(&tokens[tokens.len() - 1..], &mut cache, |_, _| Ok(()))?;
        if tokens.len() == 1 {
            timings.ttft = started.elapsed();
        }
        logits.0.iter().for_each(|value| {
            digest.update(&value.to_le_bytes());
        });
        tokens.push(logits.best());
        if ask.steps {
            steps.push(logits.0);
        }
    }
    let logits = digest.finalize().to_hex().to_string();
    let done = Done { tokens, logits, timings, bytes: 0, descriptors: 0, recomputed: false };
    Ok(Answer { done, steps })
}
