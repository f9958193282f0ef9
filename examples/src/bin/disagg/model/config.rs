//! The shape of a model, as a Hugging Face `config.json` says it, and what such a file may not ask for.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rope::{Rope, Scaling};

/// What the three families differ in: Qwen2 has biases on queries, keys and values, Qwen3 normalises queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

impl Family {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// Its `model_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// What `architectures` says.
    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// The shape of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_eps: f64,
    pub(crate) rope: Rope,
    /// The embedding is the output matrix, too. `None`: as the weights have it.
    pub(crate) tied: Option<bool>,
}

impl Config {
    /// 4 layers of 256, drawn from a seed: some 3 million parameters, and 4 KiB of cache for each token.
    pub(crate) const SEEDED: Self = Self { width: 256, ffn: 688, heads: 8, kv_heads: 4, ..Self::TRAINED };

    /// 4 layers of 128, trained: 0.7 million parameters, and 2 KiB of cache for each token.
    pub(crate) const TRAINED: Self = Self {
        family: Family::Llama,
        vocabulary: 256,
        width: 128,
        ffn: 344,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: None },
        tied: Some(true),
    };

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// It asks for what these models do not have, which is named, or its numbers don't fit together.
    pub(crate) fn from_json(text: &str) -> Result<Self> {
        let raw: Raw = serde_json::from_str(text).context("it is no model's config.json")?;
        let family = Family::ALL.into_iter().find(|family| family.name() == raw.model_type);
        let Some(family) = family else {
            bail!("model_type {:?} is not supported; llama, qwen2 and qwen3 are", raw.model_type)
        };
        raw.refuse_the_unsupported()?;
        let heads = raw.num_attention_heads;
        ensure!(heads > 0, "num_attention_heads is 0");
        let config = Self {
            family,
            vocabulary: raw.vocab_size,
            width: raw.hidden_size,
            ffn: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads),
            norm_eps: raw.rms_norm_eps,
            rope: raw.rope()?,
            tied: raw.tie_word_embeddings,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        // Far above any model there is, and far below what could overflow.
        for (name, value, most) in [
            ("vocab_size", self.vocabulary, 1 << 24),
            ("hidden_size", self.width, 1 << 20),
            ("intermediate_size", self.ffn, 1 << 22),
            ("num_hidden_layers", self.layers, 1 << 12),
            ("num_attention_heads", heads, 1 << 12),
            ("num_key_value_heads", kv_heads, 1 << 12),
            ("head_dim", head_dim, 1 << 12),
        ] {
            ensure!((1..=most).contains(&value), "{name} is {value}; 1 to {most} is possible");
        }
        ensure!(
            heads % kv_heads == 0,
            "{heads} heads do not share {kv_heads} heads of keys and values evenly"
        );
        ensure!(head_dim % 2 == 0, "head_dim is {head_dim}: positions rotate pairs of elements");
        ensure!(self.norm_eps > 0.0 && self.norm_eps < 1.0, "rms_norm_eps is {}", self.norm_eps);
        self.rope.check()
    }

    /// As [`from_json`](Self::from_json) reads it.
    pub(crate) fn to_json(self) -> Value {
        let scaling = self.rope.scaling.map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_positions,
            })
        });
        json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.name(),
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied.unwrap_or(false),
            "max_position_embeddings": 4096,
            "torch_dtype": "float16",
        })
    }

    /// A name for people and for the identity of caches. What else must be equal is compared beside it.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}x{}", self.family.name(), self.layers, self.width)
    }
}

/// What is read of a `config.json`.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// Where newer files have the two.
    rope_parameters: Option<RawRope>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    num_experts: Option<Value>,
    num_local_experts: Option<Value>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// As older files call it; some have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Raw {
    fn refuse_the_unsupported(&self) -> Result<()> {
        ensure!(
            self.quantization_config.is_none(),
            "quantization_config: quantised weights are not supported"
        );
        for (name, experts) in
            [("num_experts", &self.num_experts), ("num_local_experts", &self.num_local_experts)]
        {
            ensure!(experts.is_none(), "{name}: mixtures of experts are not supported");
        }
        for (name, asked) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
        ] {
            ensure!(asked != Some(true), "{name}: true is not supported");
        }
        let other = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention");
        ensure!(other.is_none(), "layer_types: {other:?} is not supported; full_attention is");
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        ensure!(act == "silu", "hidden_act {act:?} is not supported; silu is");
        Ok(())
    }

    fn rope(&self) -> Result<Rope> {
        let asked = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = self.rope_theta.or_else(|| asked.and_then(|asked| asked.rope_theta)).unwrap_or(10_000.0);
        let scaling = match asked {
            None => None,
            Some(asked) => asked.scaling()?,
        };
        Ok(Rope { theta, scaling })
    }
}

impl RawRope {
    fn scaling(&self) -> Result<Option<Scaling>> {
        ensure!(
            self.partial_rotary_factor.is_none_or(|factor| factor == 1.0),
            "partial_rotary_factor is not supported: positions rotate whole heads"
        );
        match self.rope_type.as_deref().or(self.old_type.as_deref()) {
            None | Some("default") => Ok(None),
            Some("llama3") => Ok(Some(Scaling {
                factor: self.factor.context("rope_scaling lacks factor")?,
                low_freq_factor: self.low_freq_factor.context("rope_scaling lacks low_freq_factor")?,
                high_freq_factor: self.high_freq_factor.context("rope_scaling lacks high_freq_factor")?,
                original_positions: self
                    .original_max_position_embeddings
                    .context("rope_scaling lacks original_max_position_embeddings")?,
            })),
            Some(other) => bail!("rope_type {other:?} is not supported; default and llama3 are"),
        }
    }
}
