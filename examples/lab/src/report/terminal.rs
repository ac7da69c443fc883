//! The figures in a terminal.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::{Report, Section, Unit};

/// All of it, as text.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.sections {
        let _ = writeln!(
            text,
            "\n{}: {}\n{}",
            section.title,
            section.about,
            table(section)
        );
    }
    let _ = writeln!(text);
    for demand in &report.demands {
        let verdict = if demand.ok { "ok" } else { "NOT OK" };
        let _ = writeln!(text, "{verdict}: {}", demand.what);
    }
    text
}

fn table(section: &Section) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(section.columns.iter().map(|column| &column.name));
    for row in &section.rows {
        let cells = row.iter().zip(&section.columns);
        table.add_row(cells.map(|(cell, column)| cell.show(column.unit)));
    }
    for (at, column) in section.columns.iter().enumerate() {
        if let Some(shown) = table.column_mut(at)
            && column.unit != Unit::Text
        {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
