//! [`Party`]: one side of a pair, as the test drives it, in Rust or in Python.

use anyhow::{Context, Result, bail, ensure};
use connect_core::{DType, RdmaMetadata, TensorEnvelope, TensorSpec};
use connect_tests::child::Worker;
use serde_json::{Value, json};

use crate::case::{Case, Layout};
use crate::side::NAME;

/// The roles there are, and what the table calls them.
pub const ROLES: [(&str, &str); 5] = [
    ("candle", "Candle"),
    ("tch", "tch"),
    ("python", "Python torch"),
    ("bytes", "raw bytes"),
    ("file", "safetensors file"),
];

/// The role of the Python original.
pub const PYTHON: &str = "python";

/// Who moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The receiver reads what the sender offers.
    Pull,
    /// The sender writes into what the receiver offers.
    Push,
}

/// What became of a case: it moved and was right to the last bit, or why it was refused.
pub type Outcome = Result<(), String>;

/// A process in a role.
pub struct Party<'a> {
    /// One of [`ROLES`].
    pub role: &'static str,
    /// The process.
    pub worker: &'a mut Worker,
}

/// What the passive side gave out.
pub struct Offered {
    id: u64,
    envelope: TensorEnvelope,
}

impl Party<'_> {
    /// The types of a Rust role.
    ///
    /// # Errors
    /// The process is gone.
    pub fn types(&mut self) -> Result<Vec<DType>> {
        let answer = self.worker.ask(json!({"do": "types", "as": self.role}), "types")?;
        Ok(serde_json::from_value(answer["types"].clone())?)
    }

    /// Offers a tensor: to be read in a pull, to be written in a push.
    ///
    /// # Errors
    /// It failed; a refusal is no failure.
    pub fn offer(&mut self, direction: Direction, case: Case) -> Result<Result<Offered, String>> {
        if self.role == PYTHON {
            return self.offer_python(direction, case).map(Ok);
        }
        let what = if direction == Direction::Pull { "offer" } else { "make_room" };
        let answer = self.command(what, case, None)?;
        if let Some(why) = refused(&answer)? {
            return Ok(Err(why));
        }
        let envelope = TensorEnvelope::from_json(&answer["envelope"].to_string())?;
        Ok(Ok(Offered { id: 0, envelope }))
    }

    /// Takes part in what the other side offers: reads in a pull, writes in a push.
    ///
    /// # Errors
    /// It failed, or what arrived is not what was sent; a refusal is no failure.
    pub fn take(&mut self, direction: Direction, case: Case, offered: &Offered) -> Result<Outcome> {
        if self.role == PYTHON {
            return self.take_python(direction, case, &offered.envelope);
        }
        let what = if direction == Direction::Pull { "receive" } else { "push" };
        let answer = self.command(what, case, Some(&offered.envelope))?;
        Ok(refused(&answer)?.map_or(Ok(()), Err))
    }

    /// Waits until the offer has ended, and checks what arrived by it.
    ///
    /// # Errors
    /// It failed, or what arrived is not what was sent.
    pub fn finish(&mut self, offered: &Offered) -> Result<()> {
        if self.role == PYTHON {
            return self.worker.completed(offered.id).map(drop);
        }
        self.worker.ask(json!({"do": "finish"}), "moved").map(drop)
    }

    /// Takes an offer back that nobody will take. Python's ends by itself.
    ///
    /// # Errors
    /// The process is gone.
    pub fn withdraw(&mut self) -> Result<()> {
        if self.role == PYTHON {
            return Ok(());
        }
        self.worker.ask(json!({"do": "withdraw"}), "withdrawn").map(drop)
    }

    fn command(&mut self, what: &str, case: Case, envelope: Option<&TensorEnvelope>) -> Result<Value> {
        let (dtype, layout) = (case.dtype, case.layout.name());
        let mut command =
            json!({"do": what, "as": self.role, "dtype": dtype, "layout": layout, "seed": case.seed});
        if let Some(envelope) = envelope {
            command["envelope"] = serde_json::to_value(envelope)?;
        }
        let id = self.worker.send(command)?;
        self.worker.answer(id)
    }

    fn offer_python(&mut self, direction: Direction, case: Case) -> Result<Offered> {
        // A strided source becomes a copy in there; a strided target would, too, so it is offered as its rows.
        let rows = direction == Direction::Push && case.layout == Layout::Strided;
        let what = if direction == Direction::Pull { "readable" } else { "writable" };
        let command = json!({"do": what, "tensors": [spec(case)?], "rows": rows, "timeout": 5});
        let id = self.worker.send(command)?;
        let answer = self.worker.expect(id, "metadata")?;
        let metadata = RdmaMetadata::from_json(&answer["metadata"].to_string())?;
        let all = 0..metadata.descriptors().len();
        let envelope =
            TensorEnvelope::new(metadata, vec![TensorSpec::new(NAME, case.dtype, case.shape(), all)?])?;
        Ok(Offered { id, envelope })
    }

    fn take_python(
        &mut self,
        direction: Direction,
        case: Case,
        envelope: &TensorEnvelope,
    ) -> Result<Outcome> {
        let what = if direction == Direction::Pull { "read" } else { "write" };
        let metadata: Value = serde_json::from_str(&envelope.metadata().to_json())?;
        // As many descriptors as the peer has.
        let rows = envelope.metadata().descriptors().len() > 1;
        let command = json!({"do": what, "metadata": metadata, "tensors": [spec(case)?], "rows": rows});
        let id = self.worker.send(command)?;
        let lost = direction == Direction::Pull && case.layout == Layout::Strided && !rows;
        if !lost {
            return self.worker.completed(id).map(|_| Ok(()));
        }
        let answer = self.worker.expect(id, "complete")?;
        ensure!(answer["verified"] == json!([false]), "Python has learned to receive into views: {answer}");
        Ok(Err("the original receives into a hidden copy, and the view gets nothing".to_owned()))
    }
}

/// What `worker.py` makes a tensor of.
fn spec(case: Case) -> Result<Value> {
    let dtype = case.dtype.torch_name().context("torch has no such type")?;
    let strided = case.layout == Layout::Strided;
    Ok(json!({"dtype": dtype, "shape": case.shape(), "seed": case.seed, "strided": strided}))
}

/// Why it was refused, if it was.
fn refused(answer: &Value) -> Result<Option<String>> {
    match answer["event"].as_str() {
        Some("moved" | "offered") => Ok(None),
        Some("refused") => Ok(Some(answer["why"].as_str().context("a refusal says why")?.to_owned())),
        _ => bail!("{answer}"),
    }
}
