//! Text as tokens, and back.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use tokenizers::Tokenizer;

/// What a model's tokens stand for.
pub(crate) struct Text {
    model: String,
    tokens: Tokens,
}

enum Tokens {
    /// Each is a byte.
    Bytes,
    /// What `tokenizer.json` says.
    Said(Box<Tokenizer>),
    /// Nobody knows: prompts and completions are numbers.
    Numbers,
}

impl Text {
    /// Of the model in this folder.
    ///
    /// # Errors
    /// Its `config.json` or its `tokenizer.json` can't be read.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let config = super::config(folder)?;
        let file = folder.join("tokenizer.json");
        let tokens = match config.vocabulary {
            _ if file.exists() => match Tokenizer::from_file(&file) {
                Ok(tokenizer) => Tokens::Said(Box::new(tokenizer)),
                Err(error) => bail!("{}: {error}", file.display()),
            },
            256 => Tokens::Bytes,
            _ => Tokens::Numbers,
        };
        Ok(Self { model: config.name(), tokens })
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// # Errors
    /// There is no `tokenizer.json` to do it by.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.tokens {
            Tokens::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Tokens::Said(tokenizer) => {
                let encoded = tokenizer.encode(text, true);
                Ok(encoded.map_err(|error| anyhow!("tokenizer.json: {error}"))?.get_ids().to_vec())
            }
            Tokens::Numbers => bail!("the model has no tokenizer.json: give the prompt as numbers of tokens"),
        }
    }

    /// What is no text is shown as what it is.
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        let numbers = || tokens.iter().map(|token| format!("{token} ")).collect();
        match &self.tokens {
            Tokens::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|token| *token as u8).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Tokens::Said(tokenizer) => tokenizer.decode(tokens, false).unwrap_or_else(|_| numbers()),
            Tokens::Numbers => numbers(),
        }
    }
}
