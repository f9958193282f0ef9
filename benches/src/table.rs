//! Tables, for terminals and for Markdown.

use comfy_table::{CellAlignment, Table, presets};

use crate::goals::Goal;
use crate::metric::shown;
use crate::sweep::{Cell, Sweep, place};

/// A sweep's table.
pub fn of_sweep(sweep: &Sweep, cells: &[Cell]) -> Table {
    let mut table = Table::new();
    let headings = sweep.columns.iter().map(|metric| metric.heading());
    let first = [sweep.axis, "engine"].into_iter().map(str::to_owned);
    table.set_header(first.chain(headings).chain(["samples".to_owned()]));
    for cell in cells.iter().filter(|cell| cell.sweep == sweep.name) {
        let samples: usize = cell.rounds.iter().map(|round| round.reads.len()).sum();
        let values = sweep.columns.iter().map(|metric| shown(cell.pooled(*metric)));
        let row = [place(cell.at), cell.engine.label().to_owned()].into_iter();
        table.add_row(row.chain(values).chain([samples.to_string()]));
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if let Some(engines) = table.column_mut(1) {
        engines.set_cell_alignment(CellAlignment::Left);
    }
    table
}

/// The goals' table.
pub fn of_goals(goals: &[Goal]) -> Table {
    let mut table = Table::new();
    table.set_header(["ratio or figure", "found, median (least to most of any round)", "goal", ""]);
    for goal in goals {
        table.add_row([goal.what.clone(), goal.found(), goal.wanted(), goal.verdict().to_owned()]);
    }
    table
}

/// For a terminal.
pub fn plain(mut table: Table) -> String {
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).to_string()
}

/// For Markdown.
pub fn markdown(mut table: Table) -> String {
    table.load_preset(presets::ASCII_MARKDOWN).to_string()
}
