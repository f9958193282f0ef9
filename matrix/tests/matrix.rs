//! All pairs, and the page that shows them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, ensure};
use connect_core::DType;
use connect_matrix::case::{Case, Layout};
use connect_matrix::party::{Direction, Outcome, PYTHON, Party, ROLES};
use connect_matrix::table::{self, Cell, Lacking, Pair, Types};
use connect_tests::child::Worker;
use connect_tests::require;

/// With this set, the page is written and not compared.
const WRITE: &str = "CONNECT_WRITE_MATRIX";

/// The processes of one transport: a Rust one for either side, and Python where it is needed. Pythons start late,
/// because each of them spins on a core from then on.
struct Sides {
    rust: [Worker; 2],
    interpreter: Option<PathBuf>,
    python: Vec<Worker>,
}

impl Sides {
    fn start(transport: &str, interpreter: Option<PathBuf>) -> Result<Self> {
        let rust = || Worker::rust(env!("CARGO_BIN_EXE_side"), &[transport]);
        Ok(Self { rust: [rust()?, rust()?], interpreter, python: Vec::new() })
    }

    /// The roles that speak this transport.
    fn roles(&self) -> impl Iterator<Item = &'static str> + Clone + use<> {
        let python = self.interpreter.is_some();
        ROLES.iter().map(|(role, _)| *role).filter(move |&role| python || role != PYTHON)
    }

    /// Every role with every other, those with the fewest Pythons first.
    fn pairs(&self) -> Vec<(&'static str, &'static str)> {
        let roles = self.roles();
        let mut pairs: Vec<_> =
            roles.clone().flat_map(|from| roles.clone().map(move |to| (from, to))).collect();
        pairs.sort_by_key(|&(from, to)| pythons(from, to));
        pairs
    }

    /// A sender and a receiver, which are two processes.
    fn pair(&mut self, sender: &'static str, receiver: &'static str) -> Result<(Party<'_>, Party<'_>)> {
        while self.python.len() < pythons(sender, receiver) {
            let interpreter = self.interpreter.as_ref().context("this transport is not Python's")?;
            self.python.push(Worker::python(interpreter, &[])?);
        }
        let (mut python, [rust_sender, rust_receiver]) = (self.python.iter_mut(), &mut self.rust);
        let mut party = |role, rust| {
            let worker = if role == PYTHON { python.next().context("started above")? } else { rust };
            Ok::<_, Error>(Party { role, worker })
        };
        Ok((party(sender, rust_sender)?, party(receiver, rust_receiver)?))
    }
}

fn pythons(sender: &str, receiver: &str) -> usize {
    [sender, receiver].into_iter().filter(|&role| role == PYTHON).count()
}

#[test]
fn every_framework_exchanges_tensors_with_every_other_as_the_page_says() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let Some(interpreter) = require::python() else { return Ok(()) };

    let mut local = Sides::start("local", None)?;
    let mut types = types(&mut local)?;
    let mut cells = run(&mut local, &types)?;
    let lacking = lacking(&mut local, &types)?;
    drop(local);

    let mut nixl = Sides::start("nixl", Some(interpreter))?;
    types.insert(PYTHON, torch_types());
    for (pair, cell) in run(&mut nixl, &types)? {
        let embedded = cells.insert(pair, cell.clone());
        ensure!(embedded.is_none_or(|embedded| embedded == cell), "{pair:?}: the transports differ");
    }
    compare(&table::document(&types, &lacking, &cells))
}

fn types(sides: &mut Sides) -> Result<Types> {
    sides.roles().map(|role| Ok((role, sides.pair(role, role)?.0.types()?))).collect()
}

/// Whether torch has them is seen when it makes such tensors.
fn torch_types() -> Vec<DType> {
    DType::ALL.iter().copied().filter(|dtype| dtype.torch_name().is_some()).collect()
}

fn run(sides: &mut Sides, types: &Types) -> Result<BTreeMap<Pair, Cell>> {
    let (mut cells, mut seed) = (BTreeMap::new(), 0);
    for (sender, receiver) in sides.pairs() {
        for direction in [Direction::Pull, Direction::Push] {
            for (from, to) in Layout::ALL.iter().flat_map(|&from| Layout::ALL.map(|to| (from, to))) {
                let pair = Pair { direction, sender, receiver, from, to };
                let cell: &mut Cell = cells.entry(pair).or_default();
                for &dtype in types[sender].iter().filter(|dtype| types[receiver].contains(dtype)) {
                    seed += 1;
                    let outcome = exchange(sides, pair, dtype, seed);
                    cell.count(outcome.with_context(|| format!("{dtype} in {pair:?}"))?);
                }
            }
        }
    }
    Ok(cells)
}

/// Moves one tensor, or learns why it does not move.
fn exchange(sides: &mut Sides, pair: Pair, dtype: DType, seed: u64) -> Result<Outcome> {
    let (mut sender, mut receiver) = sides.pair(pair.sender, pair.receiver)?;
    let source = Case { dtype, layout: pair.from, seed };
    let target = Case { dtype, layout: pair.to, seed };
    let ((passive, offered), (active, taken)) = match pair.direction {
        Direction::Pull => ((&mut sender, source), (&mut receiver, target)),
        Direction::Push => ((&mut receiver, target), (&mut sender, source)),
    };
    let offer = match passive.offer(pair.direction, offered)? {
        Ok(offer) => offer,
        Err(why) => return Ok(Err(why)),
    };
    let outcome = active.take(pair.direction, taken, &offer)?;
    match outcome {
        Ok(()) => passive.finish(&offer)?,
        // What Python takes and loses has been taken.
        Err(_) if active.role == PYTHON => passive.finish(&offer)?,
        Err(_) => passive.withdraw()?,
    }
    Ok(outcome)
}

/// What becomes of types that the receiver does not have: refused, by name, but for truth values in Candle.
fn lacking(sides: &mut Sides, types: &Types) -> Result<Lacking> {
    let mut lacking = Lacking::new();
    for role in sides.roles() {
        for &dtype in DType::ALL.iter().filter(|dtype| !types[role].contains(dtype)) {
            let (from, to) = (Layout::Contiguous, Layout::Contiguous);
            let pair = Pair { direction: Direction::Pull, sender: "bytes", receiver: role, from, to };
            let outcome = exchange(sides, pair, dtype, 1)?;
            let expected = match &outcome {
                Ok(()) => (role, dtype) == ("candle", DType::BOOL),
                // The adapter's own refusal, not what the party finds afterwards.
                Err(why) => why.starts_with("the receiver has no such element type"),
            };
            ensure!(expected, "{role} and {dtype}: {outcome:?}");
            lacking.insert((role, dtype), outcome);
        }
    }
    Ok(lacking)
}

fn compare(found: &str) -> Result<()> {
    let path = require::workspace().join("docs/matrix.md");
    if env::var_os(WRITE).is_some() {
        return Ok(fs::write(path, found)?);
    }
    let written = fs::read_to_string(path).context("could not read docs/matrix.md")?;
    let differing = written.lines().zip(found.lines()).find(|(written, found)| written != found);
    ensure!(
        written == found,
        "docs/matrix.md is not what was run. Remedy: cargo xtask matrix. First difference: {differing:?}"
    );
    Ok(())
}
