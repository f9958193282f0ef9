//! One side of transfers, in any of the Rust roles, driven over JSON lines: `side local`, `side nixl`.
//!
//! Each line on standard input is one command, each line on standard output its answer:
//!
//! ```text
//! {"id": 1, "do": "types", "as": "candle"}               -> {"event": "types", "types": ["U8", ...]}
//! {"do": "offer" | "make_room", "as": ..., CASE}         -> {"event": "offered", "envelope": {...}}
//! {"do": "receive" | "push", "as": ..., "envelope", CASE} -> {"event": "moved"}
//! {"do": "finish"}, {"do": "withdraw"}                   -> {"event": "moved"}, {"event": "withdrawn"}
//! ```
//!
//! CASE is `"dtype"`, `"layout"` and `"seed"`. Whatever receives has checked every byte before it says `moved`. What a
//! framework does not do is answered with `{"event": "refused", "why": ...}`. There is one offer at a time, until it
//! is finished or withdrawn.

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, DType, TensorEnvelope};
use connect_matrix::case::{Case, Layout};
use connect_matrix::side::{End, Side, named, refusal};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let builder = Connector::builder().default_deadline(Duration::from_secs(20));
    let connector = match std::env::args().nth(1).as_deref() {
        Some("local") => builder.build()?,
        Some("nixl") => builder.nixl(NixlConfig::default()).build()?,
        other => bail!("the transport is `local` or `nixl`, not {other:?}"),
    };
    answer(&Value::Null, json!({"event": "ready"}))?;
    let mut open = None;
    for line in stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let answered = act(&connector, &command, &mut open).unwrap_or_else(|error| match refusal(&error) {
            Some(refused) => json!({"event": "refused", "why": refused.0, "message": format!("{error:#}")}),
            None => json!({"event": "error", "message": format!("{error:#}")}),
        });
        answer(&command["id"], answered)?;
    }
    Ok(())
}

fn answer(id: &Value, mut answer: Value) -> Result<()> {
    answer["id"] = id.clone();
    let mut stdout = stdout().lock();
    writeln!(stdout, "{answer}")?;
    Ok(stdout.flush()?)
}

fn act(connector: &Connector, command: &Value, open: &mut Option<End>) -> Result<Value> {
    let moved = json!({"event": "moved"});
    match text(command, "do")? {
        "types" => {
            let side = side(command)?;
            let types: Vec<DType> = DType::ALL.iter().copied().filter(|&dtype| side.has(dtype)).collect();
            Ok(json!({"event": "types", "types": types}))
        }
        "offer" => offered(side(command)?.offer(connector, case(command)?)?, open),
        "make_room" => offered(side(command)?.make_room(connector, case(command)?)?, open),
        "receive" => {
            side(command)?.receive(connector, case(command)?, &envelope(command)?)?;
            Ok(moved)
        }
        "push" => {
            side(command)?.push(connector, case(command)?, &envelope(command)?)?;
            Ok(moved)
        }
        "finish" => {
            open.take().context("nothing is offered")?()?;
            Ok(moved)
        }
        "withdraw" => {
            drop(open.take().context("nothing is offered")?);
            Ok(json!({"event": "withdrawn"}))
        }
        other => bail!("unknown command {other:?}"),
    }
}

fn offered((envelope, end): (TensorEnvelope, End), open: &mut Option<End>) -> Result<Value> {
    *open = Some(end);
    Ok(json!({"event": "offered", "envelope": serde_json::to_value(envelope)?}))
}

fn side(command: &Value) -> Result<Box<dyn Side>> {
    let name = text(command, "as")?;
    named(name).with_context(|| format!("no framework is called {name:?}"))
}

fn case(command: &Value) -> Result<Case> {
    let layout = Layout::named(text(command, "layout")?).context("an unknown layout")?;
    let dtype = text(command, "dtype")?.parse()?;
    Ok(Case { dtype, layout, seed: command["seed"].as_u64().context("seed is a number")? })
}

fn envelope(command: &Value) -> Result<TensorEnvelope> {
    Ok(TensorEnvelope::from_json(&command["envelope"].to_string())?)
}

fn text<'a>(command: &'a Value, field: &str) -> Result<&'a str> {
    command[field].as_str().with_context(|| format!("{field} is a text"))
}
