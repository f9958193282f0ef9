//! A model's weights by the names that Hugging Face gives them, in the order of these names.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};

use super::{Config, Family};

/// Weights by name, 32-bit floats.
pub(crate) struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    pub(crate) fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self(tensors.into_iter().collect())
    }

    /// Draws them. The same seed gives the same weights in every process.
    ///
    /// The standard deviation is 0.08: with the usual 0.02 the same few bytes come out whatever is in the cache, and a
    /// demo would show nothing.
    pub(crate) fn seeded(config: &Config, seed: u64) -> Result<Self> {
        Self::drawn(config, seed, 1.0, 0.08)
    }

    /// The same to be trained.
    pub(crate) fn to_be_trained(config: &Config, seed: u64) -> Result<(Self, Vec<Var>)> {
        let Self(drawn) = Self::drawn(config, seed, 0.02, 0.02)?;
        let vars: BTreeMap<String, Var> =
            drawn.into_iter().map(|(name, it)| Ok((name, Var::from_tensor(&it)?))).collect::<Result<_>>()?;
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        Ok((Self::new(tensors), vars.into_values().collect()))
    }

    fn drawn(config: &Config, seed: u64, embedding: f64, others: f64) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let drawn = names(config).into_iter().map(|(name, shape)| {
            let tensor = match name.as_str() {
                norm if norm.ends_with("norm.weight") => Tensor::ones(shape, DType::F32, &Device::Cpu)?,
                "model.embed_tokens.weight" => normal(&mut random, &shape, embedding)?,
                _ => normal(&mut random, &shape, others)?,
            };
            Ok((name, tensor))
        });
        Ok(Self(drawn.collect::<Result<_>>()?))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// Takes one out.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.0.remove(name).with_context(|| format!("{name} is missing"))?;
        let has = tensor.dims();
        ensure!(has == shape, "{name} is {has:?}, and the config asks for {shape:?}");
        Ok(tensor)
    }

    /// # Errors
    /// Something was not taken: the model is not what its config says.
    pub(super) fn all_taken(&self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => anyhow::bail!("{name} has no place in such a model"),
        }
    }

    /// Of all names, shapes and values. How the values are stored makes no difference, nor in how many files.
    pub(crate) fn digest(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        for (name, tensor) in &self.0 {
            hash.update(format!("{name} {:?}\n", tensor.dims()).as_bytes());
            for value in tensor.flatten_all()?.to_vec1::<f32>()? {
                hash.update(&value.to_le_bytes());
            }
        }
        Ok(format!("blake3:{}", hash.finalize().to_hex()))
    }
}

/// What a model of this shape has.
pub(super) fn names(config: &Config) -> Vec<(String, Vec<usize>)> {
    let Config { vocabulary, width, ffn, head_dim, .. } = *config;
    let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, width])];
    for layer in 0..config.layers {
        let mut add = |name: &str, shape: &[usize]| {
            all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[width]);
        for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add(&format!("self_attn.{name}.weight"), &[out, width]);
            if config.family == Family::Qwen2 {
                add(&format!("self_attn.{name}.bias"), &[out]);
            }
        }
        if config.family == Family::Qwen3 {
            add("self_attn.q_norm.weight", &[head_dim]);
            add("self_attn.k_norm.weight", &[head_dim]);
        }
        add("self_attn.o_proj.weight", &[width, q]);
        add("post_attention_layernorm.weight", &[width]);
        add("mlp.gate_proj.weight", &[ffn, width]);
        add("mlp.up_proj.weight", &[ffn, width]);
        add("mlp.down_proj.weight", &[width, ffn]);
    }
    all.push(("model.norm.weight".to_owned(), vec![width]));
    if config.tied != Some(true) {
        all.push(("lm_head.weight".to_owned(), vec![vocabulary, width]));
    }
    all
}

/// Normally distributed, by Box and Muller.
fn normal(random: &mut fastrand::Rng, shape: &[usize], deviation: f64) -> Result<Tensor> {
    let count = shape.iter().product();
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (a, b) = (1.0 - random.f64(), random.f64());
        let (radius, angle) = ((-2.0 * a.ln()).sqrt() * deviation, std::f64::consts::TAU * b);
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
