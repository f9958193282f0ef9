//! The seeded checkpoint: shaped like a small Llama, filled from a seed, made once and kept.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressIterator;

/// Where each tensor's content begins in the random sequence; any number would do.
const SEED: u64 = 0x5eed;

/// The path of the seeded checkpoint of about `size_mb` MB, which is made if it is not there.
pub(crate) fn seeded(size_mb: u64) -> Result<PathBuf> {
    let folder = cache_folder();
    let path = folder.join(format!("seeded-{size_mb}mb.safetensors"));
    if path.exists() {
        return Ok(path);
    }
    println!("Making a seeded checkpoint of about {size_mb} MB, once: {}", path.display());
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let shapes = shapes(size_mb);
    let mut tensors = BTreeMap::new();
    for (index, (name, dtype, shape)) in shapes.into_iter().enumerate().progress() {
        tensors.insert(name, random(index as u64, dtype, &shape)?);
    }
    // Renamed when it is whole, so that an interrupted run leaves nothing that looks finished.
    let unfinished = folder.join(format!(".seeded-{size_mb}mb.{}", std::process::id()));
    safetensors::serialize_to_file(&tensors, None, &unfinished)?;
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn cache_folder() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("connect-demo")
}

/// Names, types and shapes of a Llama-like model that add up to about this size.
fn shapes(size_mb: u64) -> Vec<(String, DType, Vec<usize>)> {
    let hidden: usize = if size_mb >= 128 { 1024 } else { 256 };
    let inner = hidden * 11 / 4;
    let bf16 = |name: String, shape: &[usize]| (name, DType::BF16, shape.to_vec());
    let mut all = vec![
        bf16("model.embed_tokens.weight".to_owned(), &[8 * hidden, hidden]),
        ("model.rope.inv_freq".to_owned(), DType::F32, vec![32]),
        ("model.vocab.offsets".to_owned(), DType::U32, vec![8 * hidden]),
    ];
    let bytes = |all: &[(String, DType, Vec<usize>)]| -> u64 {
        all.iter()
            .map(|(_, dtype, shape)| (shape.iter().product::<usize>() * dtype.size_in_bytes()) as u64)
            .sum()
    };
    for layer in 0.. {
        if bytes(&all) >= size_mb * 1_000_000 {
            break;
        }
        let prefix = format!("model.layers.{layer}");
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            all.push(bf16(format!("{prefix}.self_attn.{name}.weight"), &[hidden, hidden]));
        }
        all.push(bf16(format!("{prefix}.mlp.gate_proj.weight"), &[inner, hidden]));
        all.push(bf16(format!("{prefix}.mlp.up_proj.weight"), &[inner, hidden]));
        all.push(bf16(format!("{prefix}.mlp.down_proj.weight"), &[hidden, inner]));
        all.push((format!("{prefix}.input_layernorm.weight"), DType::F16, vec![hidden]));
        all.push((format!("{prefix}.post_attention_layernorm.weight"), DType::F64, vec![hidden]));
    }
    all
}

/// Numbers between -1 and 1, in the order of a SplitMix64 sequence.
fn random(stream: u64, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let mut state = SEED.wrapping_add(stream << 40);
    let count = shape.iter().product();
    let numbers = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    let numbers: Vec<f32> = numbers.take(count).collect();
    Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(dtype)?)
}
