//! Models in files, against what `transformers` and our own Python make of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::rope::{Rope, Scaling};
use super::*;
use crate::engine::TRAINED;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
/// What was trained and committed. Another training gives another one.
const TRAINED_DIGEST: &str = "blake3:567d7540f9d4b2f44408a54d85ac6a504a39680f26158f5328df6cc70ca69dcd";

/// A model that differs from every default: heads share keys and values, and are not of the width's shape.
fn config(family: Family) -> Config {
    Config {
        family,
        vocabulary: 96,
        width: 32,
        ffn: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        norm_eps: 1e-6,
        rope: Rope { theta: 500.0, scaling: None },
        tied: Some(false),
    }
}

fn variants() -> [Config; 5] {
    let scaling =
        Scaling { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions: 32.0 };
    [
        config(Family::Llama),
        Config { tied: Some(true), kv_heads: 4, ..config(Family::Llama) },
        Config { rope: Rope { theta: 500.0, scaling: Some(scaling) }, ..config(Family::Llama) },
        config(Family::Qwen2),
        Config { tied: Some(true), ..config(Family::Qwen3) },
    ]
}

/// Drawn from a seed, norms and biases included.
fn weights(config: &Config) -> Result<Weights> {
    let mut random = fastrand::Rng::with_seed(3);
    let drawn = Weights::seeded(config, 2)?;
    let changed = drawn.iter().map(|(name, tensor)| {
        let tensor = match name.ends_with("norm.weight") {
            true => {
                let values: Vec<f32> = (0..tensor.elem_count()).map(|_| 0.5 + random.f32()).collect();
                Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?
            }
            false => tensor.clone(),
        };
        Ok((name.clone(), tensor))
    });
    Ok(Weights::new(changed.collect::<Result<Vec<_>>>()?))
}

fn tokens() -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(5);
    (0..40).map(|_| random.u32(0..96)).collect()
}

/// The logits after each token: so many tokens at once, and then the others one by one from the cache.
fn run(model: &Model, tokens: &[u32], at_once: usize) -> Result<Vec<Vec<f32>>> {
    let mut cache = model.cache();
    let mut rows = model.forward_all(&tokens[..at_once], &mut cache)?.to_vec2()?;
    for token in &tokens[at_once..] {
        rows.push(model.forward(&[*token], &mut cache, |_, _| Ok(()))?.0);
    }
    Ok(rows)
}

/// The largest difference.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) })
}

#[test]
fn models_that_transformers_wrote_give_its_logits() -> Result<()> {
    for name in ["llama", "llama3-rope", "qwen2", "qwen3"] {
        let folder = Path::new(FIXTURES).join("transformers").join(name);
        let model = load(&folder)?;
        let expected: Value = serde_json::from_str(&fs::read_to_string(folder.join("expected.json"))?)?;
        let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone())?;
        let logits: Vec<Vec<f32>> = serde_json::from_value(expected["logits"].clone())?;
        for at_once in [tokens.len(), 7, 1] {
            let difference = difference(&run(&model, &tokens, at_once)?, &logits);
            assert!(difference < 2e-5, "{name}, {at_once} at once: {difference}");
        }
    }
    Ok(())
}

#[test]
fn python_computes_the_same_logits() -> Result<()> {
    let probe = |python: &PathBuf| Command::new(python).args(["-c", "import torch, safetensors"]).output();
    let has_torch = |python: &PathBuf| probe(python).is_ok_and(|output| output.status.success());
    let Some(python) = connect_examples::python().filter(has_torch) else {
        assert!(std::env::var_os("CONNECT_REQUIRE_PYTHON").is_none(), "there is no Python with torch");
        eprintln!("skipped: no Python with torch; `cargo xtask setup` installs one");
        return Ok(());
    };
    for config in variants() {
        let folder = tempfile::tempdir()?;
        save(folder.path(), &config, &weights(&config)?, DType::BF16)?;
        let model = load(folder.path())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/llama.py");
        let mut child = Command::new(&python)
            .arg(script)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        for split in [40, 11] {
            let ask = json!({ "tokens": tokens(), "split": split });
            writeln!(child.stdin.as_mut().context("a pipe")?, "{ask}")?;
        }
        let output = child.wait_with_output()?;
        assert!(output.status.success(), "{}", output.status);
        let answers = String::from_utf8(output.stdout)?;
        assert_eq!(answers.lines().count(), 2);
        for (line, split) in answers.lines().zip([40, 11]) {
            let answer: Value = serde_json::from_str(line)?;
            let logits: Vec<Vec<f32>> = serde_json::from_value(answer["logits"].clone())?;
            let difference = difference(&run(&model, &tokens(), split)?, &logits);
            assert!(difference < 1e-4, "{config:?}, {split} at once: {difference}");
        }
    }
    Ok(())
}

#[test]
fn a_model_reads_back_as_it_was_written() -> Result<()> {
    for config in variants() {
        let folder = tempfile::tempdir()?;
        let digest = save(folder.path(), &config, &weights(&config)?, DType::F32)?;
        let read = load(folder.path())?;
        let made = Model::new(config, weights(&config)?)?;
        assert_eq!((read.config, read.digest()), (config, &*digest));
        assert_eq!(made.digest(), digest);
        assert_eq!(run(&read, &tokens(), 40)?, run(&made, &tokens(), 40)?);
    }
    Ok(())
}

#[test]
fn what_weights_hash_to_does_not_depend_on_their_files() -> Result<()> {
    let config = config(Family::Llama);
    let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let digest = save(one.path(), &config, &weights(&config)?, DType::F16)?;
    // The same, in two files.
    let all = candle_core::safetensors::load(one.path().join("model.safetensors"), &Device::Cpu)?;
    let mut map = serde_json::Map::new();
    for (number, name) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let mut names: Vec<&String> = all.keys().collect();
        names.sort();
        let part: Vec<&String> = names.into_iter().skip(number).step_by(2).collect();
        map.extend(part.iter().map(|tensor| ((*tensor).clone(), json!(name))));
        let tensors = part.into_iter().map(|tensor| (tensor, &all[tensor]));
        safetensors::serialize_to_file(tensors, None, &other.path().join(name))?;
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(other.path().join("model.safetensors.index.json"), index.to_string())?;
    fs::copy(one.path().join("config.json"), other.path().join("config.json"))?;
    assert_eq!(load(other.path())?.digest(), digest);
    // And other weights have another one.
    let changed = Weights::seeded(&config, 3)?;
    assert_ne!(changed.digest()?, digest);
    Ok(())
}

#[test]
fn a_changed_weight_is_noticed() -> Result<()> {
    let config = config(Family::Llama);
    let folder = tempfile::tempdir()?;
    save(folder.path(), &config, &weights(&config)?, DType::F32)?;
    let file = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&file)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes)?;
    let error = format!("{:#}", load(folder.path()).err().context("it is not what it says")?);
    assert!(error.contains("hash to"), "{error}");
    Ok(())
}

/// Writes a model with a config that is changed in one place, and tells why it is refused.
fn refusal(change: impl FnOnce(&mut Value)) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let config = config(Family::Llama);
    save(folder.path(), &config, &weights(&config)?, DType::F32)?;
    let mut json = config.to_json();
    change(&mut json);
    fs::write(folder.path().join("config.json"), json.to_string())?;
    Ok(format!("{:#}", load(folder.path()).err().context("it is refused")?))
}

#[test]
fn what_is_not_supported_is_refused_by_name() -> Result<()> {
    for (field, value, named) in [
        ("model_type", json!("mixtral"), "model_type \"mixtral\""),
        ("model_type", json!("qwen3_moe"), "qwen3_moe"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "quantised"),
        ("num_experts", json!(8), "mixtures of experts"),
        ("num_local_experts", json!(8), "mixtures of experts"),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 }), "rope_type \"yarn\""),
        ("rope_scaling", json!({ "type": "linear", "factor": 4.0 }), "rope_type \"linear\""),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": 4.0 }), "lacks low_freq_factor"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
        ("rope_scaling", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "partial_rotary"),
        ("hidden_act", json!("gelu"), "hidden_act \"gelu\""),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("num_key_value_heads", json!(3), "do not share"),
        ("num_key_value_heads", json!(0), "num_key_value_heads is 0"),
        ("num_hidden_layers", json!(1u64 << 60), "num_hidden_layers"),
        ("head_dim", json!(13), "head_dim is 13"),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps"),
        ("rope_theta", json!(-1.0), "rope_theta"),
        ("vocab_size", json!(97), "model.embed_tokens.weight is [96, 32]"),
        ("num_hidden_layers", json!(3), "model.layers.2."),
        ("num_hidden_layers", json!(1), "model.layers.1."),
        ("model_type", json!("qwen2"), "self_attn.q_proj.bias is missing"),
        ("tie_word_embeddings", json!("perhaps"), "config.json"),
    ] {
        let error = refusal(|json| json[field] = value.clone())?;
        assert!(error.contains(named), "{field} {value}: {error}");
    }
    Ok(())
}

#[test]
fn folders_without_a_model_are_errors() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let error = |folder: &Path| format!("{:#}", load(folder).err().expect("there is none"));
    assert!(error(folder.path()).contains("config.json"));
    assert!(error(&folder.path().join("none")).contains("none"));
    fs::write(folder.path().join("config.json"), config(Family::Llama).to_json().to_string())?;
    assert!(load(folder.path()).is_err(), "there are no weights");
    fs::write(folder.path().join("model.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\xff{}")?;
    assert!(load(folder.path()).is_err(), "these are none");
    Ok(())
}

#[test]
fn tokens_are_what_tokenizer_json_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("config.json"), config(Family::Llama).to_json().to_string())?;
    assert!(Text::of(folder.path())?.encode("a").is_err(), "nobody knows");
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": { "a": 0, "cache": 1, "?": 2 }, "unk_token": "?" },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string())?;
    let text = Text::of(folder.path())?;
    assert_eq!(text.encode("a cache a b")?, [0, 1, 0, 2]);
    assert_eq!(text.decode(&[1, 0]), "cache a");
    fs::write(folder.path().join("tokenizer.json"), "{}")?;
    assert!(Text::of(folder.path()).is_err());
    let bytes = Text::of(Path::new(TRAINED))?;
    assert_eq!(bytes.decode(&bytes.encode("Käse")?), "Käse");
    Ok(())
}

#[test]
fn likely_tokens_are_drawn_more_often() {
    let logits = Logits(vec![0.0, 3f32.ln(), f32::NEG_INFINITY]);
    let mut random = fastrand::Rng::with_seed(1);
    let mut count = |temperature| {
        let mut counts = [0; 3];
        (0..4000).for_each(|_| counts[logits.draw(temperature, &mut random) as usize] += 1);
        counts
    };
    assert_eq!(count(0.0), [0, 4000, 0]);
    let [rare, frequent, never] = count(1.0);
    assert!((900..1100).contains(&rare) && (2900..3100).contains(&frequent) && never == 0);
    let [rare, ..] = count(100.0);
    assert!((1850..2150).contains(&rare), "{rare}");
}

#[test]
fn the_trained_model_is_the_one_that_was_committed_and_writes_words() -> Result<()> {
    let model = load(&PathBuf::from(TRAINED))?;
    assert_eq!(model.digest(), TRAINED_DIGEST);
    assert_eq!(model.config, Config::TRAINED);
    let corpus = crate::train::Corpus::of_the_workspace()?;
    let text = |tokens: &[u32]| {
        String::from_utf8_lossy(&tokens.iter().map(|it| *it as u8).collect::<Vec<_>>()).into_owned()
    };
    let known = text(&corpus.learnt) + &text(&corpus.held_out);
    let known: std::collections::HashSet<&str> = known.split(|c: char| !c.is_alphanumeric()).collect();
    let prompt: Vec<u32> = "The connector reads ".bytes().map(u32::from).collect();
    let (mut cache, mut written) = (model.cache(), Vec::new());
    let mut random = fastrand::Rng::with_seed(0);
    let mut logits = model.forward(&prompt, &mut cache, |_, _| Ok(()))?;
    for _ in 0..160 {
        written.push(logits.draw(0.5, &mut random));
        logits = model.forward(&written[written.len() - 1..], &mut cache, |_, _| Ok(()))?;
    }
    let written = text(&written);
    // The last one may be cut off.
    let words: Vec<&str> =
        written.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let words = &words[..words.len().saturating_sub(1)];
    let known = words.iter().filter(|word| known.contains(**word)).count();
    assert!(
        words.len() >= 10 && known * 10 >= words.len() * 8,
        "{known} of {} words: {written:?}",
        words.len()
    );
    Ok(())
}
