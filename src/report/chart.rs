//! Plots as inline SVG, coloured by the page's style.

use std::fmt::Write;

use reward::statistics::comparison::Comparison;

use super::picture::escaped;

/// About that of a phone, so that text is drawn at its size.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 200.0;
/// Left of the plots, for labels.
const MARGIN: f64 = 68.0;

/// One line of a plot.
pub(super) struct Series<'a> {
    /// What the legend says.
    pub(super) name: &'a str,
    /// The style's class: `set`, or dashed `base` or `bound`.
    pub(super) class: &'static str,
    /// In ascending order of x.
    pub(super) points: Vec<(f64, f64)>,
}

/// A figure with lines; nothing where no line has two finite points. Writing to a string cannot fail.
pub(super) fn lines(title: &str, x_name: &str, series: &[Series]) -> String {
    let finite = |series: &Series| series.points.iter().filter(|(_, y)| y.is_finite()).copied().collect::<Vec<_>>();
    let drawn: Vec<_> =
        series.iter().map(|series| (series, finite(series))).filter(|(_, points)| points.len() > 1).collect();
    let all = || drawn.iter().flat_map(|(_, points)| points);
    if drawn.is_empty() {
        return String::new();
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = all().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        (low, if high > low { high } else { low + 1.0 })
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let (top, bottom) = (12.0, HEIGHT - 32.0);
    let x = |value: f64| MARGIN + (value - left) / (right - left) * (WIDTH - MARGIN - 12.0);
    let y = |value: f64| bottom - (value - low) / (high - low) * (bottom - top);
    let mut svg = String::new();
    for (series, points) in &drawn {
        let points: Vec<String> = points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = write!(svg, r#"<polyline class="{}" points="{}"/>"#, series.class, points.join(" "));
    }
    let names: Vec<&str> = drawn.iter().map(|(series, _)| series.name).collect();
    let legend =
        if drawn.len() > 1 { format!(": {} (dashed: {})", names[0], names[1..].join(", ")) } else { String::new() };
    format!(
        r#"<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}, from {first:.4} to {last:.4}"><path class="axis" d="M{MARGIN} {top}V{bottom}H{WIDTH}"/>{svg}<text x="{label}" y="{above}" text-anchor="end">{high}</text><text x="{label}" y="{bottom}" text-anchor="end">{low}</text><text x="{MARGIN}" y="{below}">{left}</text><text x="{end}" y="{below}" text-anchor="end">{x_name} {right}</text></svg><figcaption>{title}{legend}</figcaption></figure>"#,
        title = escaped(title),
        legend = escaped(&legend),
        first = drawn[0].1[0].1,
        last = drawn[0].1[drawn[0].1.len() - 1].1,
        label = MARGIN - 6.0,
        above = top + 8.0,
        below = HEIGHT - 12.0,
        end = WIDTH - 4.0,
        high = short(high),
        low = short(low),
    )
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 | 0.01..1e2 => format!("{value:.3}"),
        1e2..1e5 => format!("{value:.1}"),
        _ => format!("{value:.1e}"),
    }
}

/// Win rates `of` a set with their intervals, a row a metric, and the line at a half.
pub(super) fn win_rates(comparisons: &[&Comparison], of: &str) -> String {
    const ROW: f64 = 30.0;
    const LABELS: f64 = 130.0;
    let x = |rate: f64| LABELS + rate * (WIDTH - LABELS - 16.0);
    let mut svg = String::new();
    for (index, found) in comparisons.iter().enumerate() {
        let y = ROW * (index as f64 + 0.5) + 8.0;
        let (low, high) = (x(found.interval_low), x(found.interval_high));
        let _ = write!(
            svg,
            r#"<text x="0" y="{:.1}">{}</text><path class="set" d="M{low:.1} {y:.1}H{high:.1}"/><circle class="dot" cx="{:.1}" cy="{y:.1}" r="5"/>"#,
            y + 4.0,
            escaped(&found.metric),
            x(found.win_rate),
        );
    }
    let bottom = ROW * comparisons.len() as f64 + 12.0;
    let said: Vec<String> = comparisons.iter().map(|found| format!("{} {:.3}", found.metric, found.win_rate)).collect();
    format!(
        r#"<figure><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Win rates: {said}"><path class="half" d="M{half:.1} 4V{bottom}"/><path class="axis" d="M{LABELS} {bottom}H{right:.1}"/>{svg}<text x="{LABELS}" y="{below}">0</text><text x="{half:.1}" y="{below}" text-anchor="middle">0.5</text><text x="{right:.1}" y="{below}" text-anchor="end">1</text></svg><figcaption>Win rate{of} with 95 % interval, ties as half</figcaption></figure>"#,
        height = bottom + 24.0,
        of = escaped(of),
        said = escaped(&said.join(", ")),
        half = x(0.5),
        right = x(1.0),
        below = bottom + 18.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_span_the_plot() {
        let series = [Series { name: "<a>", class: "set", points: vec![(1.0, 0.5), (3.0, f64::NAN), (5.0, 1.5)] }];
        let svg = lines("Reward", "step", &series);
        assert!(svg.contains(r#"points="68.0,168.0 328.0,12.0""#), "{svg}");
        assert_eq!(lines("Reward", "step", &[]), "");
    }
}
