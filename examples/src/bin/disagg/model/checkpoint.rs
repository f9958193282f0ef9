//! Models in files: a folder with `config.json` and safetensors, as Hugging Face keeps them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use connect_candle::candle_dtype;
use connect_core::checkpoint::Checkpoint;

use super::{Config, Model, Weights};

/// Under which name a file says what its weights hash to.
const DIGEST: &str = "weights";

/// Reads the model in a folder: `config.json`, and `model.safetensors` or shards with their index.
///
/// # Errors
/// What is missing, does not fit, or is not supported, by name.
pub(crate) fn load(folder: &Path) -> Result<Model> {
    read(folder).with_context(|| format!("the model in {}", folder.display()))
}

/// The shape of the model in a folder.
pub(crate) fn config(folder: &Path) -> Result<Config> {
    let text = fs::read_to_string(folder.join("config.json")).context("config.json")?;
    Config::from_json(&text).context("config.json")
}

fn read(folder: &Path) -> Result<Model> {
    let config = config(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let mut tensors = Vec::new();
    for tensor in checkpoint.tensors() {
        // Old files have these, which follow from the config.
        if tensor.name.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        let stored =
            candle_dtype(tensor.dtype).filter(|dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16));
        let Some(stored) = stored else {
            bail!("{} is {}; weights in f32, f16 and bf16 are supported", tensor.name, tensor.dtype)
        };
        let shape = tensor.shape.iter().map(|dim| Ok(usize::try_from(*dim)?)).collect::<Result<Vec<_>>>()?;
        let bytes = checkpoint.read(&tensor.name)?;
        let values = Tensor::from_raw_buffer(&bytes, stored, &shape, &Device::Cpu)?.to_dtype(DType::F32)?;
        tensors.push((tensor.name.clone(), values));
    }
    let model = Model::new(config, Weights::new(tensors))?;
    if let Some(stated) = checkpoint.metadata().get(DIGEST) {
        ensure!(stated == model.digest(), "its weights hash to {}, and it says {stated}", model.digest());
    }
    Ok(model)
}

/// Writes a model as [`load`] reads it. Its weights are rounded to `dtype`; the digest is that of what was written.
///
/// # Errors
/// The folder can't be made or written to.
pub(crate) fn save(folder: &Path, config: &Config, weights: &Weights, dtype: DType) -> Result<String> {
    let stored: HashMap<String, Tensor> = weights
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?)))
        .collect::<Result<_>>()?;
    let rounded = stored.iter().map(|(name, it)| Ok((name.clone(), it.to_dtype(DType::F32)?)));
    let digest = Weights::new(rounded.collect::<Result<Vec<_>>>()?).digest()?;
    fs::create_dir_all(folder)?;
    let config = format!("{:#}\n", config.to_json());
    fs::write(folder.join("config.json"), config)?;
    let metadata = HashMap::from([
        // What transformers looks for.
        ("format".to_owned(), "pt".to_owned()),
        (DIGEST.to_owned(), digest.clone()),
    ]);
    safetensors::serialize_to_file(&stored, Some(metadata), &folder.join("model.safetensors"))?;
    Ok(digest)
}
