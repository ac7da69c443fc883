//! A chart of a section's table, as SVG. Colours are those of light mode; the page's style turns them for dark mode.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Cell, Chart, Kind, Lines, Section};

/// Drawn this large, and shown as wide as there is space for: on a phone the letters are still to be read.
const SIZE: (u32, u32) = (400, 280);
const LETTERS: u32 = 14;

/// What has no colour of its own.
pub(super) const INK: RGBColor = RGBColor(0x20, 0x20, 0x20);
pub(super) const GRID: RGBColor = RGBColor(0xd0, 0xd0, 0xd0);

/// The colours of lines and bars, in light mode and in dark mode, and what marks them beside the colour.
pub(super) const COLOURS: [(RGBColor, &str, &str); 5] = [
    (RGBColor(0xc2, 0x41, 0x0c), "#fb923c", "●"),
    (RGBColor(0xa1, 0x62, 0x07), "#facc15", "▲"),
    (RGBColor(0xa2, 0x1c, 0xaf), "#e879f9", "✕"),
    (RGBColor(0x03, 0x69, 0xa1), "#38bdf8", "○"),
    (RGBColor(0x04, 0x78, 0x57), "#34d399", "△"),
];

/// A chart, ready to be shown.
pub(super) struct Drawn {
    pub(super) svg: String,
    /// The names of its lines, in the order of [`COLOURS`].
    pub(super) names: Vec<String>,
}

/// What is drawn: a name, and a number for each place on the axis, where there is one.
struct Line {
    name: String,
    numbers: Vec<Option<f64>>,
}

type Area<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Failed = DrawingAreaErrorKind<std::io::Error>;

pub(super) fn draw(section: &Section, chart: &Chart) -> anyhow::Result<Drawn> {
    let (places, lines) = read(section, chart);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = plot(&area, chart, &places, &lines);
        drawn.map_err(|error| anyhow::anyhow!("chart {}: {error}", chart.title))?;
    }
    let names = lines.into_iter().map(|line| line.name).collect();
    Ok(Drawn { svg, names })
}

/// The places on the axis, and the lines over them, as the table has them.
fn read(section: &Section, chart: &Chart) -> (Vec<String>, Vec<Line>) {
    let mut places: Vec<String> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for row in &section.rows {
        let place = row[chart.x].show(section.columns[chart.x].unit);
        let at = places.iter().position(|known| *known == place);
        let at = at.unwrap_or_else(|| {
            places.push(place);
            places.len() - 1
        });
        let points: Vec<(String, &Cell)> = match &chart.lines {
            Lines::By { name, y } => {
                let unit = section.columns[*name].unit;
                vec![(row[*name].show(unit), &row[*y])]
            }
            Lines::Columns(columns) => {
                let named = |&y: &usize| (section.columns[y].name.clone(), &row[y]);
                columns.iter().map(named).collect()
            }
        };
        for (name, cell) in points {
            let known = lines.iter().position(|line| line.name == name);
            let line = known.unwrap_or_else(|| {
                lines.push(Line {
                    name,
                    numbers: Vec::new(),
                });
                lines.len() - 1
            });
            let numbers = &mut lines[line].numbers;
            numbers.resize(numbers.len().max(at + 1), None);
            if let Cell::Number(number) = cell {
                numbers[at] = Some(*number);
            }
        }
    }
    (places, lines)
}

/// The axis upwards: from, to, and how a number becomes a height.
struct Upwards {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Upwards {
    fn of(lines: &[Line], logarithmic: bool) -> Self {
        let numbers = lines
            .iter()
            .flat_map(|line| line.numbers.iter().flatten().copied());
        if logarithmic {
            let (mut from, mut to) = (f64::MAX, f64::MIN);
            for number in numbers {
                from = from.min(number.max(0.1).log10().floor());
                to = to.max(number.max(0.1).log10().ceil());
            }
            let to = to.max(from + 1.0);
            return Self {
                from,
                to,
                logarithmic,
            };
        }
        let most = numbers.fold(0.0, f64::max);
        let to = if most > 0.0 { most * 1.05 } else { 1.0 };
        Self {
            from: 0.0,
            to,
            logarithmic,
        }
    }

    fn height(&self, number: f64) -> f64 {
        if self.logarithmic {
            number.max(0.1).log10()
        } else {
            number
        }
    }

    fn label(&self, height: f64) -> String {
        let number = if self.logarithmic {
            10_f64.powf(height)
        } else {
            height
        };
        if number >= 10_000.0 {
            format!("{:.0}k", number / 1000.0)
        } else if number >= 10.0 || number.fract() == 0.0 {
            format!("{number:.0}")
        } else {
            format!("{number:.1}")
        }
    }
}

fn plot<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    chart: &Chart,
    places: &[String],
    lines: &[Line],
) -> Result<(), Failed> {
    let letters = || ("sans-serif", LETTERS).into_font().color(&INK);
    let upwards = Upwards::of(lines, chart.logarithmic);
    let mut context: Area<'a> = ChartBuilder::on(area)
        .margin(8)
        .margin_right(12)
        .x_label_area_size(24)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..places.len() as f64, upwards.from..upwards.to)?;
    let steps = if chart.logarithmic {
        (upwards.to - upwards.from) as usize + 1
    } else {
        6
    };
    context
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_labels(steps)
        .y_label_formatter(&|height: &f64| upwards.label(*height))
        .y_label_style(letters())
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let below = letters().pos(Pos::new(HPos::Center, VPos::Top));
    for (at, place) in places.iter().enumerate() {
        // With many places every other one is named.
        if places.len() > 8 && at % 2 == 1 {
            continue;
        }
        let foot = (at as f64 + 0.5, upwards.from);
        let label = Text::new(place.clone(), (0, 7), below.clone());
        context
            .plotting_area()
            .draw(&(EmptyElement::at(foot) + label))?;
    }
    for (number, line) in lines.iter().enumerate() {
        match chart.kind {
            Kind::Lines => draw_line(&mut context, &upwards, number, line)?,
            Kind::Bars => draw_bars(&mut context, &upwards, number, lines.len(), line)?,
        }
    }
    area.present()
}

fn draw_line(
    context: &mut Area<'_>,
    upwards: &Upwards,
    number: usize,
    line: &Line,
) -> Result<(), Failed> {
    let (colour, ..) = COLOURS[number % COLOURS.len()];
    let points: Vec<(f64, f64)> = (0..)
        .zip(&line.numbers)
        .filter_map(|(at, y)| Some((f64::from(at) + 0.5, upwards.height((*y)?))))
        .collect();
    context.draw_series(LineSeries::new(
        points.iter().copied(),
        colour.stroke_width(2),
    ))?;
    let (full, hollow) = (colour.filled(), colour.stroke_width(2));
    for point in points {
        let area = context.plotting_area();
        match number % COLOURS.len() {
            0 => area.draw(&Circle::new(point, 4, full))?,
            1 => area.draw(&TriangleMarker::new(point, 5, full))?,
            2 => area.draw(&Cross::new(point, 4, hollow))?,
            3 => area.draw(&Circle::new(point, 5, hollow))?,
            _ => area.draw(&TriangleMarker::new(point, 6, hollow))?,
        }
    }
    Ok(())
}

/// The bars of one colour: beside those of the others, in a space of which a fifth is left empty.
fn draw_bars(
    context: &mut Area<'_>,
    upwards: &Upwards,
    number: usize,
    colours: usize,
    line: &Line,
) -> Result<(), Failed> {
    let (colour, ..) = COLOURS[number % COLOURS.len()];
    let wide = 0.8 / colours as f64;
    let bars = (0..).zip(&line.numbers).filter_map(|(at, y)| {
        let left = f64::from(at) + 0.1 + wide * number as f64;
        let top = upwards.height((*y)?);
        Some(Rectangle::new(
            [(left, upwards.from), (left + wide * 0.9, top)],
            colour.filled(),
        ))
    });
    context.draw_series(bars).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Unit, cells};

    /// The numbers that a bar has by a name, in a chart of two ways under two loads.
    fn bars(svg: &str, colour: usize) -> Vec<f64> {
        let RGBColor(red, green, blue) = COLOURS[colour].0;
        let fill = format!("fill=\"#{red:02X}{green:02X}{blue:02X}\"");
        let bars = svg.split("<rect").filter(|rect| rect.contains(&fill));
        let height = |rect: &str| {
            rect.split("height=\"")
                .nth(1)?
                .split('"')
                .next()?
                .parse()
                .ok()
        };
        bars.map(|rect| height(rect).unwrap()).collect()
    }

    // Mutant: T47
    #[test]
    fn bars_are_as_high_as_the_numbers_of_the_table() {
        let columns = [
            ("load", Unit::Count),
            ("way", Unit::Text),
            ("errors", Unit::Count),
            ("done", Unit::Count),
        ];
        let mut section = Section::new("id", "title", "about", columns);
        for (load, way, done) in [
            (10_u64, "a", 40.0),
            (10_u64, "b", 20.0),
            (50_u64, "a", 10.0),
            (50_u64, "b", 30.0),
        ] {
            section.row(cells![load, way, 77.0, done]);
        }
        let drawn = draw(&section, &Chart::bars("Done", 0, 1, 3)).unwrap();
        assert_eq!(drawn.names, ["a", "b"]);
        let high = [bars(&drawn.svg, 0), bars(&drawn.svg, 1)].concat();
        let of = high[0] / 40.0;
        for (high, number) in high.iter().zip([40.0, 10.0, 20.0, 30.0]) {
            // To a pixel.
            assert!(
                (high / of - number).abs() < 1.0,
                "{high} for {number}: {}",
                drawn.svg
            );
        }
        assert_eq!(high.len(), 4, "{}", drawn.svg);
    }
}
