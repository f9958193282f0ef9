//! Draws a sweep as SVG.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::engine::Engine;
use crate::metric::{Metric, shown};
use crate::sweep::{Cell, Plot, Sweep, place};

/// The drawing, with the legend at its right: lines would run through one inside.
const SIZE: (u32, u32) = (940, 460);
const LEGEND: u32 = 220;
const FONT: (&str, u32) = ("sans-serif", 14);
const TITLE: (&str, u32) = ("sans-serif", 18);

// Colours that people who see fewer of them can tell apart, too (Okabe and Ito, 2008).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const SKY: RGBColor = RGBColor(86, 180, 233);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const VERMILION: RGBColor = RGBColor(213, 94, 0);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const YELLOW: RGBColor = RGBColor(240, 228, 66);
const BLACK: RGBColor = RGBColor(0, 0, 0);
const GREY: RGBColor = RGBColor(90, 90, 90);

/// An engine's colour, the same in all plots, and whether its markers are hollow.
fn look(engine: Engine) -> (RGBColor, bool) {
    match engine {
        Engine::Nixl => (BLUE, false),
        Engine::NixlAsync => (BLUE, true),
        Engine::NixlTcp => (SKY, false),
        Engine::NixlThread => (SKY, true),
        Engine::NixlLatency => (YELLOW, false),
        Engine::NixlEfficient => (YELLOW, true),
        Engine::NixlNoFailures => (BLACK, false),
        Engine::Local => (GREEN, false),
        Engine::LocalAsync => (GREEN, true),
        Engine::LocalPush => (PURPLE, false),
        Engine::NixlPush => (BLACK, false),
        Engine::NixlTcpPush => (BLACK, true),
        Engine::Pipe => (GREY, true),
        Engine::LocalBlocks => (YELLOW, false),
        Engine::NixlBlocks => (BLACK, true),
        Engine::NixlTcpBlocks => (PURPLE, true),
        Engine::Bare => (VERMILION, false),
        Engine::BareRepost => (VERMILION, true),
        Engine::BareTcp => (ORANGE, false),
        Engine::BareLists => (ORANGE, true),
        Engine::Original => (PURPLE, false),
        Engine::BarePrepared => (PURPLE, true),
        Engine::Attach => (GREY, false),
        Engine::Memcpy => (GREY, true),
    }
}

fn marker(engine: Engine) -> ShapeStyle {
    let (colour, is_hollow) = look(engine);
    if is_hollow { colour.stroke_width(2) } else { colour.filled() }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws all plots of a sweep into `folder`, and names the files.
///
/// # Errors
/// A file can't be written.
pub fn draw(sweep: &Sweep, cells: &[Cell], folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for plot in sweep.plots {
        let file = folder.join(format!("{}-{}.svg", sweep.name, plot.up().name().replace('_', "-")));
        draw_one(*plot, sweep, cells, &file)?;
        files.push(file);
    }
    Ok(files)
}

fn draw_one(plot: Plot, sweep: &Sweep, cells: &[Cell], file: &Path) -> Result<()> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    match plot {
        Plot::Lines(metric) => lines(&area, sweep, cells, metric),
        Plot::Bars(metric) => bars(&area, sweep, cells, metric),
        Plot::Dots(across, up) => dots(&area, sweep, cells, across, up),
    }?;
    area.present().map_err(|error| failed(&error))
}

/// plotters' errors borrow from what they are about.
fn failed(error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!("a plot can't be drawn: {error}")
}

/// The values of one engine in one plot.
struct Series {
    engine: Engine,
    points: Vec<(f64, f64)>,
}

fn series(sweep: &Sweep, cells: &[Cell], of: impl Fn(&Cell) -> Option<(f64, f64)>) -> Vec<Series> {
    let points = |engine: &Engine| {
        let mine = cells.iter().filter(|cell| cell.sweep == sweep.name && cell.engine == *engine);
        mine.filter_map(&of).filter(|(_, up)| *up > 0.0).collect()
    };
    let all = sweep.engines.iter().map(|engine| Series { engine: *engine, points: points(engine) });
    all.filter(|series| !series.points.is_empty()).collect()
}

/// The range of all values, a little wider; both axes are logarithmic, so neither begins at zero.
fn range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let least = values.clone().fold(f64::MAX, f64::min);
    let most = values.fold(f64::MIN_POSITIVE, f64::max);
    least / 1.4..(most * 1.4).max(least * 2.0)
}

fn lines(area: &Area<'_>, sweep: &Sweep, cells: &[Cell], metric: Metric) -> Result<()> {
    let all = series(sweep, cells, |cell| Some((cell.at as f64, cell.pooled(metric)?)));
    let across = |at: f64| place(at.round() as u64);
    graph(area, sweep, &all, (sweep.axis, &across), metric, true)
}

fn dots(area: &Area<'_>, sweep: &Sweep, cells: &[Cell], across: Metric, up: Metric) -> Result<()> {
    let all = series(sweep, cells, |cell| Some((cell.pooled(across)?.max(0.001), cell.pooled(up)?)));
    graph(area, sweep, &all, (&across.heading(), &|value| shown(Some(value))), up, false)
}

/// An axis' name, and how a value on it is written.
type Axis<'a> = (&'a str, &'a dyn Fn(f64) -> String);

fn graph(
    area: &Area<'_>,
    sweep: &Sweep,
    all: &[Series],
    (across, written): Axis<'_>,
    up: Metric,
    connected: bool,
) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let points = all.iter().flat_map(|series| series.points.iter());
    let xs = range(points.clone().map(|(x, _)| *x)).log_scale();
    let ys = range(points.map(|(_, y)| *y)).log_scale();
    let (area, beside) = area.split_horizontally(SIZE.0 - LEGEND);
    legend(&beside, all)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(sweep.title, TITLE)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(xs, ys)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc(up.heading())
        .x_label_formatter(&|at| written(*at))
        .y_label_formatter(&|value| shown(Some(*value)))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| failed(&error))?;
    for series in all {
        if connected {
            let (colour, _) = look(series.engine);
            let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line).map_err(|error| failed(&error))?;
        }
        let markers = series.points.iter().map(|point| Circle::new(*point, 4, marker(series.engine)));
        chart.draw_series(markers).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn legend(area: &Area<'_>, all: &[Series]) -> Result<()> {
    let style = TextStyle::from(FONT).pos(Pos::new(HPos::Left, VPos::Center));
    for (index, series) in all.iter().enumerate() {
        let y = 60 + 24 * index as i32;
        area.draw(&Circle::new((12, y), 4, marker(series.engine))).map_err(|error| failed(&error))?;
        area.draw_text(series.engine.label(), &style, (24, y)).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// One bar below the other, because their names are long; logarithmic, because the original's would leave no room
/// for the rest.
fn bars(area: &Area<'_>, sweep: &Sweep, cells: &[Cell], metric: Metric) -> Result<()> {
    let all = series(sweep, cells, |cell| Some((cell.at as f64, cell.pooled(metric)?)));
    if all.is_empty() {
        return Ok(());
    }
    let value = |series: &Series| series.points[0].1;
    let xs = range(all.iter().map(value));
    let least = xs.start;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: {}", sweep.title, metric.heading()), TITLE)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(210)
        .build_cartesian_2d(xs.log_scale(), 0f64..all.len() as f64)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(6)
        .x_label_formatter(&|value| shown(Some(*value)))
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| failed(&error))?;
    let style = TextStyle::from(FONT).pos(Pos::new(HPos::Right, VPos::Center));
    for (index, series) in all.iter().enumerate() {
        let middle = (all.len() - index) as f64 - 0.5;
        let (value, (colour, _)) = (value(series), look(series.engine));
        let bar = Rectangle::new([(least, middle - 0.35), (value, middle + 0.35)], colour.filled());
        chart.draw_series([bar]).map_err(|error| failed(&error))?;
        let (x, y) = chart.backend_coord(&(least, middle));
        let label = format!("{}  {}", series.engine.label(), shown(Some(value)));
        area.draw_text(&label, &style, (x - 6, y)).map_err(|error| failed(&error))?;
    }
    Ok(())
}
