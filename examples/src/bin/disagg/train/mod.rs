//! Trains the small model of the demo, so that words come out of it. `cargo xtask train-fixture` runs it.

mod corpus;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy};
use indicatif::{ProgressBar, ProgressStyle};

use crate::engine::TRAINED;
use crate::model::{self, Config, Model, Weights};
pub(crate) use corpus::Corpus;

/// How it is trained.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The folder to write
    #[arg(long, default_value = TRAINED)]
    out: PathBuf,
    /// Steps
    #[arg(long, default_value_t = 900)]
    steps: usize,
    /// Texts in a step, half of them for each of two threads
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Bytes of a text
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// The rate of learning, after some steps and before it falls
    #[arg(long, default_value_t = 4e-3)]
    rate: f64,
    /// Weights and texts are drawn from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Trains, writes, and says what it came to.
pub(crate) fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    let corpus = Corpus::of_the_workspace()?;
    let (learnt, held_out) = (corpus.learnt.len(), corpus.held_out.len());
    println!("Learning from {learnt} bytes of this repository's text; {held_out} are kept back.");
    let config = Config::TRAINED;
    let mut training = Training::new(config, &corpus, options)?;
    let before = training.held_out_loss()?;
    let bar = ProgressBar::new(options.steps as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {eta} left, {msg}")?);
    let mut first = None;
    for step in 1..=options.steps {
        let loss = training.step()?;
        let first = *first.get_or_insert(loss);
        bar.set_message(format!("loss {first:.2} -> {loss:.2}"));
        bar.inc(1);
        // Where there is no terminal for a bar.
        if bar.is_hidden() && step % options.steps.div_ceil(10) == 0 {
            println!("step {step} of {}: loss {first:.2} -> {loss:.2}", options.steps);
        }
    }
    bar.finish_and_clear();
    let digest = model::save(&options.out, &config, &training.weights, DType::F16)?;
    let trained = model::load(&options.out)?;
    println!("loss       {:.3} at first, {:.3} at last", first.unwrap_or(f32::NAN), training.last);
    println!(
        "held out   {before:.3} before, {:.3} after (nats per byte)",
        loss(&trained, &corpus.held_out, options.length)?
    );
    println!("weights    {digest} in {}", options.out.display());
    println!("it took    {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// A model on its way.
pub(crate) struct Training<'a> {
    pub(crate) model: Model,
    pub(crate) weights: Weights,
    vars: Vec<Var>,
    optimizer: AdamW,
    corpus: &'a Corpus,
    options: Options,
    random: fastrand::Rng,
    at: usize,
    /// The last steps' losses, the latest with the most weight.
    last: f32,
}

impl<'a> Training<'a> {
    pub(crate) fn new(config: Config, corpus: &'a Corpus, options: &Options) -> Result<Self> {
        let (batch, length) = (options.batch, options.length);
        ensure!(batch > 0 && length > 0, "{batch} texts of {length} bytes are nothing to learn from");
        ensure!(corpus.learnt.len() > length + 1, "there are no {length} bytes of text in a row");
        let (weights, vars) = Weights::to_be_trained(&config, options.seed)?;
        // The model's tensors are the variables themselves: what the optimiser sets, it sees.
        let shared = weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone()));
        let model = Model::new(config, Weights::new(shared))?;
        let settings =
            ParamsAdamW { lr: options.rate, weight_decay: 0.05, beta2: 0.98, ..ParamsAdamW::default() };
        let optimizer = AdamW::new(vars.clone(), settings)?;
        let random = fastrand::Rng::with_seed(options.seed);
        Ok(Self {
            model,
            weights,
            vars,
            optimizer,
            corpus,
            options: options.clone(),
            random,
            at: 0,
            last: f32::NAN,
        })
    }

    /// One step; the loss before it, in nats per byte.
    pub(crate) fn step(&mut self) -> Result<f32> {
        let (batch, length) = (self.options.batch, self.options.length);
        let text = &self.corpus.learnt;
        let starts: Vec<usize> = (0..batch).map(|_| self.random.usize(0..text.len() - length - 1)).collect();
        let model = &self.model;
        let half = |starts: &[usize]| -> Result<(f32, GradStore)> {
            let losses = starts.iter().map(|start| text_loss(model, &text[*start..start + length + 1]));
            let sum =
                losses.collect::<Result<Vec<_>>>()?.into_iter().reduce(|a, b| (a + b).expect("scalars"));
            let mean = (sum.context("a text")? / batch as f64)?;
            Ok((mean.to_scalar()?, mean.backward()?))
        };
        let (one, other) = starts.split_at(batch.div_ceil(2));
        let (one, other) = std::thread::scope(|scope| {
            let other = (!other.is_empty()).then(|| scope.spawn(|| half(other)));
            (half(one), other.map(|other| other.join().expect("no panic")))
        });
        let (mut loss, mut gradients) = one?;
        if let Some(other) = other {
            let (more, others) = other?;
            loss += more;
            for var in &self.vars {
                if let (Some(a), Some(b)) = (gradients.get(var), others.get(var)) {
                    gradients.insert(var, (a + b)?);
                }
            }
        }
        self.optimizer.set_learning_rate(self.rate());
        self.optimizer.step(&gradients)?;
        self.at += 1;
        self.last = if self.last.is_nan() { loss } else { 0.95 * self.last + 0.05 * loss };
        Ok(self.last)
    }

    /// Up for a twentieth of the steps, and down along a cosine.
    fn rate(&self) -> f64 {
        let (at, steps) = (self.at as f64, self.options.steps.max(1) as f64);
        let up = (steps / 20.0).max(1.0);
        let down = 0.5 * (1.0 + (std::f64::consts::PI * at / steps).cos());
        self.options.rate * (at / up + 1e-3).min(1.0) * down.max(0.02)
    }

    pub(crate) fn held_out_loss(&self) -> Result<f32> {
        loss(&self.model, &self.corpus.held_out, self.options.length)
    }
}

/// What comes next in a text, how badly it is known.
fn text_loss(model: &Model, text: &[u32]) -> Result<Tensor> {
    let (before, after) = (&text[..text.len() - 1], &text[1..]);
    let logits = model.forward_all(before, &mut model.cache())?;
    Ok(cross_entropy(&logits, &Tensor::new(after, logits.device())?)?)
}

/// The same over a longer text.
fn loss(model: &Model, text: &[u32], length: usize) -> Result<f32> {
    let mut losses = Vec::new();
    for piece in text.chunks(length + 1).filter(|piece| piece.len() > 1) {
        losses.push((text_loss(model, piece)?.to_scalar::<f32>()?, piece.len() - 1));
    }
    let all: usize = losses.iter().map(|(_, count)| count).sum();
    Ok(losses.iter().map(|(loss, count)| loss * *count as f32).sum::<f32>() / all.max(1) as f32)
}
