//! A byte-level Llama, small enough for any machine and real enough to notice a wrong bit in its cache.
//!
//! Its weights are drawn from a seed, with a standard deviation of 0.08: with the usual 0.02 the same few bytes come out
//! whatever is in the cache, and a demo would show nothing.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

/// Bytes there are.
pub(crate) const VOCABULARY: usize = 256;

/// The shape of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
}

impl Config {
    /// 4 layers of 256: some 3 million parameters, and 4 KiB of cache for each token.
    pub(crate) const SMALL: Self = Self { layers: 4, heads: 8, kv_heads: 4, head_dim: 32, ffn: 688 };

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Keys and values of each layer so far, `[kv_heads, tokens, head_dim]`.
pub(crate) type Cache = Vec<Option<(Tensor, Tensor)>>;

/// What one forward pass gives.
pub(crate) struct Logits(pub Vec<f32>);

impl Logits {
    /// The most likely byte; the first of several.
    pub(crate) fn best(&self) -> u32 {
        let mut best = 0;
        for (at, value) in self.0.iter().enumerate() {
            if *value > self.0[best] {
                best = at;
            }
        }
        best as u32
    }
}

struct Layer {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// The model.
pub(crate) struct Model {
    pub(crate) config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    digest: String,
}

impl Model {
    /// Draws the weights. The same seed gives the same model in every process.
    pub(crate) fn seeded(config: Config, seed: u64) -> Result<Self> {
        let mut draw = Draw { random: fastrand::Rng::with_seed(seed), hash: blake3::Hasher::new() };
        let (width, kv) = (config.width(), config.kv_heads * config.head_dim);
        let embedding = draw.tensor(&[VOCABULARY, width], 1.0)?;
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            layers.push(Layer {
                attention_norm: ones(width)?,
                q: draw.tensor(&[width, width], 0.08)?,
                k: draw.tensor(&[width, kv], 0.08)?,
                v: draw.tensor(&[width, kv], 0.08)?,
                o: draw.tensor(&[width, width], 0.08)?,
                ffn_norm: ones(width)?,
                gate: draw.tensor(&[width, config.ffn], 0.08)?,
                up: draw.tensor(&[width, config.ffn], 0.08)?,
                down: draw.tensor(&[config.ffn, width], 0.08)?,
            });
        }
        let head = draw.tensor(&[width, VOCABULARY], 0.08)?;
        let digest = format!("blake3:{}", draw.hash.finalize().to_hex());
        Ok(Self { config, embedding, layers, norm: ones(width)?, head, digest })
    }

    /// A digest of the weights.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// An empty cache.
    pub(crate) fn cache(&self) -> Cache {
        vec![None; self.config.layers]
    }

    /// Runs `tokens`, which follow what the cache has, and adds them to it. `after_layer` is called when a layer's keys
    /// and values are complete.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        mut after_layer: impl FnMut(usize, &(Tensor, Tensor)) -> Result<()>,
    ) -> Result<Logits> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let (count, device) = (tokens.len(), Device::Cpu);
        let past = cache.first().and_then(Option::as_ref).map_or(Ok(0), |(k, _)| k.dim(1))?;
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &device)?, 0)?;
        let (cos, sin) = rotation(past, count, head_dim)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let h = rms_norm(&x, &layer.attention_norm)?;
            let split =
                |x: Tensor, heads: usize| x.reshape((count, heads, head_dim))?.transpose(0, 1)?.contiguous();
            let q = rotate(&split(h.matmul(&layer.q)?, heads)?, &cos, &sin)?;
            let k = rotate(&split(h.matmul(&layer.k)?, kv_heads)?, &cos, &sin)?;
            let v = split(h.matmul(&layer.v)?, kv_heads)?;
            let (k, v) = match &cache[index] {
                Some((past_k, past_v)) => (Tensor::cat(&[past_k, &k], 1)?, Tensor::cat(&[past_v, &v], 1)?),
                None => (k, v),
            };
            let kept = cache[index].insert((k, v));
            after_layer(index, kept)?;
            let attended = attention(&q, &kept.0, &kept.1, past)?;
            let attended = attended.transpose(0, 1)?.reshape((count, self.config.width()))?;
            x = (x + attended.matmul(&layer.o)?)?;
            let h = rms_norm(&x, &layer.ffn_norm)?;
            let gated = (silu(&h.matmul(&layer.gate)?)? * h.matmul(&layer.up)?)?;
            x = (x + gated.matmul(&layer.down)?)?;
        }
        let last = rms_norm(&x.narrow(0, count - 1, 1)?, &self.norm)?;
        Ok(Logits(last.matmul(&self.head)?.squeeze(0)?.to_vec1()?))
    }
}

struct Draw {
    random: fastrand::Rng,
    hash: blake3::Hasher,
}

impl Draw {
    /// Normally distributed, by Box and Muller.
    fn tensor(&mut self, shape: &[usize], deviation: f64) -> Result<Tensor> {
        let count = shape.iter().product();
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let (a, b) = (1.0 - self.random.f64(), self.random.f64());
            let (radius, angle) = ((-2.0 * a.ln()).sqrt() * deviation, std::f64::consts::TAU * b);
            values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
        }
        values.truncate(count);
        for value in &values {
            self.hash.update(&value.to_le_bytes());
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

fn ones(width: usize) -> Result<Tensor> {
    Ok(Tensor::ones(width, DType::F32, &Device::Cpu)?)
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(weight)?)
}

fn silu(x: &Tensor) -> Result<Tensor> {
    Ok((x / (x.neg()?.exp()? + 1.0)?)?)
}

/// Cosines and sines of `count` positions from `past` on, `[count, head_dim / 2]`.
fn rotation(past: usize, count: usize, head_dim: usize) -> Result<(Tensor, Tensor)> {
    let half = head_dim / 2;
    let angle =
        |position: usize, at: usize| position as f32 / 10_000f32.powf(2.0 * at as f32 / head_dim as f32);
    let angles: Vec<f32> =
        (past..past + count).flat_map(|position| (0..half).map(move |at| angle(position, at))).collect();
    let angles = Tensor::from_vec(angles, (count, half), &Device::Cpu)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Rotates pairs of elements by their position: `x` is `[heads, count, head_dim]`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[first, second], D::Minus1)?)
}

/// Causal attention; each head of keys and values serves several queries.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, past: usize) -> Result<Tensor> {
    let (heads, count, head_dim) = q.dims3()?;
    let (kv_heads, all, _) = k.dims3()?;
    let repeat = |x: &Tensor| -> Result<Tensor> {
        let shape = (kv_heads, heads / kv_heads, all, head_dim);
        Ok(x.unsqueeze(1)?.expand(shape)?.reshape((heads, all, head_dim))?)
    };
    let scores = (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? / (head_dim as f64).sqrt())?;
    let hidden = |row: usize, column: usize| if column > past + row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..count).flat_map(|row| (0..all).map(move |column| hidden(row, column))).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(mask, (count, all), &Device::Cpu)?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    Ok(weights.matmul(&repeat(v)?)?)
}
