//! The figures as one page that needs nothing else: no script, no other file.

use std::fmt::Write as _;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::chart::{self, COLOURS, GRID, INK};
use super::{Cell, Chart, Kind, Report, Section, Unit};

/// The colours of both modes, by name.
pub(super) const MODES: &str = "
:root { color-scheme: light dark; --ink: #202020; --faint: #5c5c5c; --grid: #d0d0d0; --paper: #ffffff;
  --good: #047857; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #a8a8a8; --grid: #484848; --paper: #16181c; --good: #34d399; --bad: #f87171; } }";

const STYLE: &str = "
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin: 2.5rem 0 .25rem; line-height: 1.25; } p { margin: .25rem 0 .75rem; max-width: 44rem; }
.faint { color: var(--faint); } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
a { color: inherit; } nav ul { columns: 16rem; padding-left: 1.2rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; flex: 1 1 18rem; max-width: 28rem; min-width: 0; }
figcaption { font-weight: 600; } figure p { margin: 0; text-align: center; font-size: .875rem; } svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0; padding: 0; list-style: none; font-size: .875rem; }
.scroll { overflow-x: auto; margin-top: .75rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }";

/// All of it, as HTML.
pub(crate) fn html(report: &Report) -> anyhow::Result<String> {
    let sections: Result<Vec<_>, _> = report.sections.iter().map(section).collect();
    let kept = report.demands.iter().filter(|demand| demand.ok).count();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "lockkit lab" }
                style { (PreEscaped(MODES)) (PreEscaped(STYLE)) (PreEscaped(colours())) }
            }
            body {
                h1 { "lockkit lab" }
                p {
                    "Several processes on one database, under load: what naive code does there, and what lockkit does. "
                    "“Theirs” is what the programs that this lab is modelled on have reported of themselves."
                }
                @if report.quick {
                    p.bad { "Small loads, to see that it works: the figures mean nothing." }
                }
                p.faint {
                    (format!("{} processors; load average {:.1} before and {:.1} after; {:.0} s in all.",
                        report.machine.processors, report.machine.load[0], report.machine.load[1], report.seconds))
                }
                p class=(if report.ok { "good" } else { "bad" }) {
                    (kept) " of " (report.demands.len()) " demands are met."
                }
                details open[!report.ok] {
                    summary { "What was demanded" }
                    ul {
                        @for demand in &report.demands {
                            li class=[(!demand.ok).then_some("bad")] {
                                @if !demand.ok { "Not so: " }
                                (demand.what)
                            }
                        }
                    }
                }
                nav {
                    ul {
                        @for section in &report.sections {
                            li { a href={ "#" (section.id) } { (section.title) } }
                        }
                    }
                }
                @for section in sections? { (section) }
            }
        }
    };
    Ok(page.into_string())
}

fn section(section: &Section) -> anyhow::Result<Markup> {
    let figures: Result<Vec<_>, _> = section
        .charts
        .iter()
        .map(|chart| figure(section, chart))
        .collect();
    Ok(html! {
        section id=(section.id) {
            h2 { (section.title) }
            p.faint { (section.about) "." }
            div.charts { @for figure in figures? { (figure) } }
            div.scroll tabindex="0" {
                table {
                    thead {
                        tr { @for column in &section.columns { th class=[class(column.unit)] { (column.name) } } }
                    }
                    tbody {
                        @for row in &section.rows {
                            tr {
                                @for (cell, column) in row.iter().zip(&section.columns) {
                                    (entry(cell, column.unit))
                                }
                            }
                        }
                    }
                }
            }
        }
    })
}

/// A cell. A number is there as it was measured, too.
fn entry(cell: &Cell, unit: Unit) -> Markup {
    let value = match cell {
        Cell::Number(number) => Some(number.to_string()),
        Cell::Text(_) => None,
    };
    html! { td class=[class(unit)] data-value=[value] { (cell.show(unit)) } }
}

fn class(unit: Unit) -> Option<&'static str> {
    (unit != Unit::Text).then_some("number")
}

fn figure(section: &Section, chart: &Chart) -> anyhow::Result<Markup> {
    let drawn = chart::draw(section, chart)?;
    let axis = &section.columns[chart.x].name;
    let label = format!(
        "{}, by {axis}; the numbers are in the table below",
        chart.title
    );
    Ok(html! {
        figure {
            figcaption { (chart.title) }
            div role="img" aria-label=(label) { (PreEscaped(drawn.svg)) }
            p.faint { (axis) }
            @if drawn.names.len() > 1 {
                ul.legend {
                    @for (number, name) in drawn.names.iter().enumerate() {
                        @let (_, _, mark) = COLOURS[number % COLOURS.len()];
                        @let mark = if chart.kind == Kind::Bars { "■" } else { mark };
                        li { span class={ "c" (number % COLOURS.len()) } { (mark) } " " (name) }
                    }
                }
            }
        }
    })
}

/// Turns the colours that are written in the charts into those of the mode.
pub(super) fn colours() -> String {
    let mut style = String::new();
    for (colour, name) in [(INK, "--ink"), (GRID, "--grid")] {
        let _ = write!(style, "\n{}", turned(colour, &format!("var({name})")));
    }
    for (number, (light, ..)) in COLOURS.iter().enumerate() {
        let _ = write!(style, "\n.c{number} {{ color: {}; }}", hex(*light));
    }
    style.push_str("\n@media (prefers-color-scheme: dark) {");
    for (number, (light, dark, _)) in COLOURS.iter().enumerate() {
        let _ = write!(
            style,
            "\n  .c{number} {{ color: {dark}; }} {}",
            turned(*light, dark)
        );
    }
    style.push_str(" }");
    style
}

fn turned(from: RGBColor, to: &str) -> String {
    let from = hex(from);
    format!("svg [fill=\"{from}\"] {{ fill: {to}; }} svg [stroke=\"{from}\"] {{ stroke: {to}; }}")
}

/// As the charts have it.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}
