//! The main charts as a picture of their own, which needs no page around it.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::chart::{self, COLOURS};
use super::{Report, page};

/// The section whose charts these are.
const SECTION: &str = "load";

/// Of each chart, with its title above and its axis below.
const WIDTH: usize = 400;
const HEIGHT: usize = 280;

/// Errors and lost updates against the load, side by side, above what the lines mean.
pub(crate) fn svg(report: &Report) -> anyhow::Result<String> {
    let section = report.sections.iter().find(|section| section.id == SECTION);
    let section = section.context("there is nothing to be drawn")?;
    let (mut drawn, mut names) = (String::new(), Vec::new());
    for (number, chart) in section.charts.iter().take(2).enumerate() {
        let axis = &section.columns[chart.x].name;
        let (left, middle) = (number * WIDTH, number * WIDTH + WIDTH / 2);
        let of = chart::draw(section, chart)?;
        let nested = of
            .svg
            .replacen("<svg ", &format!("<svg x=\"{left}\" y=\"28\" "), 1);
        let _ = write!(
            drawn,
            "<text x=\"{middle}\" y=\"20\" class=\"word title\">{}</text>{nested}<text x=\"{middle}\" y=\"322\" class=\"word\">{axis}</text>",
            chart.title
        );
        names = of.names;
    }
    let columns = 3;
    for (number, name) in names.iter().enumerate() {
        let (colour, mark) = (number % COLOURS.len(), COLOURS[number % COLOURS.len()].2);
        let x = 40 + number % columns * (2 * WIDTH - 40) / columns;
        let y = HEIGHT + 70 + number / columns * 22;
        let _ = write!(
            drawn,
            "<text x=\"{x}\" y=\"{y}\" class=\"word name\"><tspan class=\"c{colour}\">{mark}</tspan> {name}</text>"
        );
    }
    let (width, height) = (2 * WIDTH, HEIGHT + 80 + names.len().div_ceil(columns) * 22);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\
         <style>{}\n.word {{ font: 14px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }}\n\
         .word.title {{ font-weight: 600; }} .word.name {{ text-anchor: start; }}{}</style>\
         <rect width=\"100%\" height=\"100%\" style=\"fill: var(--paper)\"/>{drawn}</svg>\n",
        page::MODES,
        page::colours().replace("{ color:", "{ fill:"),
    ))
}
