//! `docs/matrix.md`: what was run, as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use connect_core::DType;

use crate::case::Layout;
use crate::party::{Direction, Outcome, ROLES};

/// What comes before the tables.
const HEAD: &str = include_str!("head.md");

/// The element types of each role, in the order of [`ROLES`].
pub type Types = BTreeMap<&'static str, Vec<DType>>;

/// What became of the types that a role does not have.
pub type Lacking = BTreeMap<(&'static str, DType), Outcome>;

/// One pair in one direction: sender, receiver, and how the tensor lies on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// Who moves the bytes.
    pub direction: Direction,
    /// The role that has the tensor.
    pub sender: &'static str,
    /// The role that gets it.
    pub receiver: &'static str,
    /// The sender's layout.
    pub from: Layout,
    /// The receiver's layout.
    pub to: Layout,
}

/// What was run of one pair: each type that both sides have, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    moved: usize,
    refused: BTreeMap<String, usize>,
}

impl Cell {
    /// Counts one case.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Ok(()) => self.moved += 1,
            Err(why) => *self.refused.entry(why).or_default() += 1,
        }
    }

    fn text(&self, notes: &mut Notes) -> String {
        let refused = self.refused.iter().map(|(why, count)| (count, notes.number(why)));
        if self.moved > 0 {
            let not: String = refused.map(|(count, note)| format!(", not {count} [{note}]")).collect();
            return format!("{} types{not}", self.moved);
        }
        let why: Vec<String> = refused.map(|(_, note)| format!("[{note}]")).collect();
        if why.is_empty() { String::new() } else { format!("no {}", why.join(" ")) }
    }
}

/// Each reason once, numbered in the order in which they come.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn number(&mut self, why: &str) -> usize {
        let known = self.0.iter().position(|known| known == why);
        known.unwrap_or_else(|| {
            self.0.push(why.to_owned());
            self.0.len() - 1
        }) + 1
    }
}

/// The document.
pub fn document(types: &Types, lacking: &Lacking, cells: &BTreeMap<Pair, Cell>) -> String {
    let (mut text, mut notes) = (HEAD.to_owned(), Notes::default());
    let layouts = Layout::ALL.iter().flat_map(|&from| Layout::ALL.iter().map(move |&to| (from, to)));
    for (direction, title) in [
        (Direction::Pull, "Pull: the receiver reads what the sender offers"),
        (Direction::Push, "Push: the sender writes into what the receiver offers"),
    ] {
        line(&mut text, format_args!("\n## {title}\n"));
        let columns = layouts.clone().map(|(from, to)| format!(" {} to {} |", from.name(), to.name()));
        line(&mut text, format_args!("| sender | receiver |{}", columns.collect::<String>()));
        line(&mut text, format_args!("|---|---|---|---|---|---|"));
        for (sender, sender_name) in ROLES {
            for (receiver, receiver_name) in ROLES {
                let row = layouts.clone().map(|(from, to)| {
                    let pair = Pair { direction, sender, receiver, from, to };
                    let cell = cells.get(&pair).map(|cell| cell.text(&mut notes)).unwrap_or_default();
                    assert!(!cell.is_empty(), "nothing was run of {pair:?}");
                    format!(" {cell} |")
                });
                let row: String = row.collect();
                line(&mut text, format_args!("| {sender_name} | {receiver_name} |{row}"));
            }
        }
    }
    text.push('\n');
    for (number, why) in (1..).zip(&notes.0) {
        line(&mut text, format_args!("{number}. {why}."));
    }
    line(&mut text, format_args!("\n## Element types\n"));
    let names: String = ROLES.iter().map(|(_, name)| format!(" {name} |")).collect();
    line(&mut text, format_args!("| type |{names}"));
    line(&mut text, format_args!("|---|---|---|---|---|---|"));
    for dtype in DType::ALL {
        let has = |role| match lacking.get(&(role, *dtype)) {
            _ if types[role].contains(dtype) => " yes |",
            Some(Ok(())) => " received as U8 |",
            Some(Err(_)) => " refused: no such type |",
            None => " torch has no such type |",
        };
        let row: String = ROLES.iter().map(|(role, _)| has(role)).collect();
        line(&mut text, format_args!("| {dtype} |{row}"));
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}
