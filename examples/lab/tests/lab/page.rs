//! The page in a browser: each chart is really drawn, letters can be read on a phone, and in dark mode.

use std::fs;
use std::process::Command;

use serde::Deserialize;

use crate::figures;

/// What a script that is added to the page for this test has measured.
#[derive(Debug, Deserialize)]
struct Measured {
    /// Of the whole page, and of the window.
    wide: f64,
    window: f64,
    ink: String,
    paper: String,
    charts: Vec<Drawn>,
}

#[derive(Debug, Deserialize)]
struct Drawn {
    title: String,
    width: f64,
    height: f64,
    /// How high the smallest letters are.
    letters: f64,
    /// How many texts are in it.
    texts: usize,
    /// Lines, marks and bars in one of the lines' colours: those that have a size and are within the chart, and all.
    visible: usize,
    marks: usize,
    /// Their colours, as they are shown.
    colours: Vec<String>,
}

const MEASURE: &str = r##"
addEventListener("load", () => {
  const frame = document.getElementById("frame"), page = frame.contentDocument, view = frame.contentWindow;
  const style = (element, name) => view.getComputedStyle(element)[name];
  const charts = [...page.querySelectorAll("figure")].map(figure => {
    const svg = figure.querySelector("svg"), outer = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")];
    const neutral = ["#202020", "#D0D0D0", "none", null];
    const colour = e => [e.getAttribute("fill"), e.getAttribute("stroke")].find(c => !neutral.includes(c));
    const marks = [...svg.querySelectorAll("polyline, polygon, circle, rect, line")]
      .filter(e => colour(e) && e.getAttribute("opacity") !== "0");
    const visible = marks.filter(e => {
      const box = e.getBoundingClientRect();
      return (box.width > 0 && box.height + (e.tagName === "polyline") > 0) && box.left >= outer.left - 1
        && box.right <= outer.right + 1 && box.top >= outer.top - 1 && box.bottom <= outer.bottom + 1;
    });
    const shown = visible.map(e => style(e, neutral.includes(e.getAttribute("fill")) ? "stroke" : "fill"));
    return { title: figure.querySelector("figcaption").textContent, width: outer.width, height: outer.height,
      letters: Math.min(...texts.map(t => t.getBoundingClientRect().height)), texts: texts.length,
      visible: visible.length, marks: marks.length, colours: [...new Set(shown)] };
  });
  document.getElementById("measured").textContent = JSON.stringify({
    wide: page.documentElement.scrollWidth, window: view.innerWidth,
    ink: style(page.body, "color"), paper: style(page.body, "backgroundColor"), charts });
});
"##;

/// Shows the page in a window of this width, and measures.
fn measure(page: &str, width: u32, dark: bool) -> Measured {
    let folder = tempfile::tempdir().unwrap();
    // In a frame, which may be narrower than a browser lets its window be.
    let inner = page.replace('&', "&amp;").replace('"', "&quot;");
    let outer = format!(
        "<!doctype html><meta charset=utf-8><meta name=color-scheme content=\"light dark\"><iframe id=frame style=\"width:{width}px;height:900px;border:0\" \
         srcdoc=\"{inner}\"></iframe><pre id=measured></pre><script>{MEASURE}</script>"
    );
    let file = folder.path().join("page.html");
    fs::write(&file, outer).unwrap();
    let scheme = u8::from(!dark);
    // Ends by itself; the limit is for one that is broken.
    let output = Command::new("timeout")
        .args([
            "--kill-after=5",
            "240",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--dump-dom",
        ])
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(
        output.status.code(),
        Some(127),
        "there is no Chromium; type `apt-get install -y --no-install-recommends chromium`"
    );
    let dom = String::from_utf8_lossy(&output.stdout);
    let measured = dom
        .split("<pre id=\"measured\">")
        .nth(1)
        .and_then(|rest| rest.split("</pre>").next());
    let measured = measured.unwrap_or_else(|| panic!("nothing was measured: {said}"));
    let measured = measured
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&measured).unwrap_or_else(|error| panic!("{error}: {measured}: {said}"))
}

/// How much lighter one colour is than the other, from 1 to 21, as the web's guide lines for contrast count.
fn contrast(one: &str, other: &str) -> f64 {
    let lightness = |colour: &str| {
        let numbers = colour
            .trim_start_matches("rgba(")
            .trim_start_matches("rgb(");
        let parts: Vec<f64> = numbers
            .trim_end_matches(')')
            .split(',')
            .map(|part| part.trim().parse::<f64>().unwrap() / 255.0)
            .map(|part| {
                if part <= 0.03928 {
                    part / 12.92
                } else {
                    ((part + 0.055) / 1.055).powf(2.4)
                }
            })
            .collect();
        0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    };
    let (one, other) = (lightness(one), lightness(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

fn readable(measured: &Measured, charts: usize) {
    assert_eq!(measured.charts.len(), charts);
    assert!(
        measured.wide <= measured.window,
        "the page is wider than its window: {measured:?}"
    );
    assert!(
        contrast(&measured.ink, &measured.paper) >= 7.0,
        "{measured:?}"
    );
    for chart in &measured.charts {
        assert!(chart.width >= 280.0 && chart.height >= 150.0, "{chart:?}");
        assert!(chart.width <= measured.window, "{chart:?}");
        assert!(chart.texts >= 4 && chart.letters >= 9.0, "{chart:?}");
        assert!(chart.marks >= 1 && chart.visible >= 1, "{chart:?}");
        for colour in &chart.colours {
            assert!(
                contrast(colour, &measured.paper) >= 3.0,
                "{}: {colour}",
                chart.title
            );
        }
    }
}

// Mutant: T48
#[test]
fn each_chart_is_drawn_on_a_desk_and_on_a_phone_by_day_and_by_night() {
    let (figures, page) = figures::on_files();
    let sections = figures["sections"].as_array().unwrap();
    let charts: usize = sections
        .iter()
        .map(|section| section["charts"].as_array().unwrap().len())
        .sum();
    assert!(charts >= 6);
    let (desk, phone) = (measure(page, 1200, false), measure(page, 360, true));
    readable(&desk, charts);
    readable(&phone, charts);
    assert!(desk.paper != phone.paper, "dark mode is another colour");
    // Of a line there is a mark for each number.
    let load = desk
        .charts
        .iter()
        .find(|chart| chart.title == "Errors, %")
        .unwrap();
    let rows = sections
        .iter()
        .find(|section| section["id"] == "load")
        .unwrap();
    assert!(
        load.visible >= rows["rows"].as_array().unwrap().len(),
        "{load:?}"
    );
}
