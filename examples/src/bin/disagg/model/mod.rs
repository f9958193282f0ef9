//! Llama and its relatives Qwen2 and Qwen3, on the CPU in 32-bit floats: small enough to be read, and real enough to
//! notice a wrong bit in their caches.
//!
//! Weights are drawn from a seed, read from a checkpoint, or trained (`train`): all have the names and the `config.json`
//! of Hugging Face.

mod checkpoint;
mod config;
mod rope;
#[cfg(test)]
mod tests;
mod text;
mod weights;

use anyhow::Result;
use candle_core::{D, Device, Tensor};

pub(crate) use checkpoint::{config, load, save};
pub(crate) use config::{Config, Family};
pub(crate) use text::Text;
pub(crate) use weights::Weights;

/// Keys and values of each layer so far, `[kv_heads, tokens, head_dim]`.
pub(crate) type Cache = Vec<Option<(Tensor, Tensor)>>;

/// What one forward pass gives.
pub(crate) struct Logits(pub Vec<f32>);

impl Logits {
    /// The most likely token; the first of several.
    pub(crate) fn best(&self) -> u32 {
        let mut best = 0;
        for (at, value) in self.0.iter().enumerate() {
            if *value > self.0[best] {
                best = at;
            }
        }
        best as u32
    }

    /// One of the likely tokens: the most likely one at temperature 0, and the less likely ones more often above it.
    pub(crate) fn draw(&self, temperature: f32, random: &mut fastrand::Rng) -> u32 {
        let best = self.best();
        if temperature <= 0.0 {
            return best;
        }
        let highest = self.0[best as usize];
        let chances: Vec<f32> = self.0.iter().map(|it| ((it - highest) / temperature).exp()).collect();
        let mut left = random.f32() * chances.iter().sum::<f32>();
        let drawn = chances.iter().position(|chance| {
            left -= chance;
            left < 0.0
        });
        drawn.map_or(best, |at| at as u32)
    }
}

/// `y = W x + b`, with `W` as `[out, in]`.
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    /// Of each head of queries and of keys, in Qwen3.
    qk_norm: Option<(Tensor, Tensor)>,
    o: Linear,
    ffn_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The model.
pub(crate) struct Model {
    pub(crate) config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    frequencies: Vec<f32>,
    digest: String,
}

impl Model {
    /// A model of these weights.
    ///
    /// # Errors
    /// They are not those of a model of this shape; the weight is named.
    pub(crate) fn new(config: Config, mut weights: Weights) -> Result<Self> {
        let digest = weights.digest()?;
        let tied = config.tied.unwrap_or(!weights.has("lm_head.weight"));
        let config = Config { tied: Some(tied), ..config };
        if tied {
            // Some files have the embedding twice.
            let _ = weights.take("lm_head.weight", &[config.vocabulary, config.width]);
        }
        let Config { width, head_dim, vocabulary, .. } = config;
        let layers = (0..config.layers).map(|index| Layer::new(&config, index, &mut weights));
        let layers = layers.collect::<Result<_>>()?;
        let embedding = weights.take("model.embed_tokens.weight", &[vocabulary, width])?;
        let norm = weights.take("model.norm.weight", &[width])?;
        let head = match tied {
            true => embedding.clone(),
            false => weights.take("lm_head.weight", &[vocabulary, width])?,
        };
        weights.all_taken()?;
        let (head, frequencies) = (Linear { weight: head, bias: None }, config.rope.frequencies(head_dim));
        Ok(Self { config, embedding, layers, norm, head, frequencies, digest })
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
    /// and values are complete. What comes next is in the logits.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        after_layer: impl FnMut(usize, &(Tensor, Tensor)) -> Result<()>,
    ) -> Result<Logits> {
        let states = self.states(tokens, cache, after_layer)?;
        let last = states.narrow(0, tokens.len() - 1, 1)?;
        Ok(Logits(self.logits(&last)?.squeeze(0)?.to_vec1()?))
    }

    /// The logits after each token, `[count, vocabulary]`.
    pub(crate) fn forward_all(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.logits(&self.states(tokens, cache, |_, _| Ok(()))?)
    }

    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        self.head.apply(&self.normed(states, &self.norm)?)
    }

    fn states(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        mut after_layer: impl FnMut(usize, &(Tensor, Tensor)) -> Result<()>,
    ) -> Result<Tensor> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let count = tokens.len();
        let past = cache.first().and_then(Option::as_ref).map_or(Ok(0), |(k, _)| k.dim(1))?;
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        let rotation = rope::rotation(&self.frequencies, past, count)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let h = self.normed(&x, &layer.attention_norm)?;
            let split =
                |x: Tensor, heads: usize| x.reshape((count, heads, head_dim))?.transpose(0, 1)?.contiguous();
            let (mut q, mut k) = (split(layer.q.apply(&h)?, heads)?, split(layer.k.apply(&h)?, kv_heads)?);
            if let Some((q_norm, k_norm)) = &layer.qk_norm {
                (q, k) = (self.normed(&q, q_norm)?, self.normed(&k, k_norm)?);
            }
            let (q, k) = (rope::rotate(&q, &rotation)?, rope::rotate(&k, &rotation)?);
            let v = split(layer.v.apply(&h)?, kv_heads)?;
            let (k, v) = match &cache[index] {
                Some((past_k, past_v)) => (Tensor::cat(&[past_k, &k], 1)?, Tensor::cat(&[past_v, &v], 1)?),
                None => (k, v),
            };
            let kept = cache[index].insert((k, v));
            after_layer(index, kept)?;
            let attended = attention(&q, &kept.0, &kept.1, past)?;
            let attended = attended.transpose(0, 1)?.reshape((count, heads * head_dim))?;
            x = (x + layer.o.apply(&attended)?)?;
            let h = self.normed(&x, &layer.ffn_norm)?;
            let gated = (silu(&layer.gate.apply(&h)?)? * layer.up.apply(&h)?)?;
            x = (x + layer.down.apply(&gated)?)?;
        }
        Ok(x)
    }

    /// Root-mean-square normalisation. In plain operations, which can be differentiated; Candle's own can't.
    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        Ok(x.broadcast_div(&(mean + self.config.norm_eps)?.sqrt()?)?.broadcast_mul(weight)?)
    }
}

impl Layer {
    /// Takes the weights of one layer.
    fn new(config: &Config, index: usize, weights: &mut Weights) -> Result<Self> {
        let Config { width, ffn, head_dim, family, .. } = *config;
        let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        let mut take =
            |name: &str, shape: &[usize]| weights.take(&format!("model.layers.{index}.{name}"), shape);
        let attention_norm = take("input_layernorm.weight", &[width])?;
        let ffn_norm = take("post_attention_layernorm.weight", &[width])?;
        let qk_norm = match family {
            Family::Qwen3 => Some((
                take("self_attn.q_norm.weight", &[head_dim])?,
                take("self_attn.k_norm.weight", &[head_dim])?,
            )),
            Family::Llama | Family::Qwen2 => None,
        };
        let mut linear = |name: &str, out: usize, from: usize, is_biased: bool| -> Result<Linear> {
            let weight = take(&format!("{name}.weight"), &[out, from])?;
            let bias = is_biased.then(|| take(&format!("{name}.bias"), &[out])).transpose()?;
            Ok(Linear { weight, bias })
        };
        let is_biased = family == Family::Qwen2;
        Ok(Self {
            attention_norm,
            q: linear("self_attn.q_proj", q, width, is_biased)?,
            k: linear("self_attn.k_proj", kv, width, is_biased)?,
            v: linear("self_attn.v_proj", kv, width, is_biased)?,
            qk_norm,
            o: linear("self_attn.o_proj", width, q, false)?,
            ffn_norm,
            gate: linear("mlp.gate_proj", ffn, width, false)?,
            up: linear("mlp.up_proj", ffn, width, false)?,
            down: linear("mlp.down_proj", width, ffn, false)?,
        })
    }
}

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

fn silu(x: &Tensor) -> Result<Tensor> {
    Ok((x / (x.neg()?.exp()? + 1.0)?)?)
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
