//! The report of `evaluate` in a real browser; skipped, with the reason, where Chromium is not installed.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    support::harness::Workspace,
    support::image_sets::write_set,
    support::webdriver::{BACKSPACE, Browser, DOWN, ENTER, RIGHT, TAB},
};

const LONG_WORD: &str = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaftsvorstandsmitglied\
                         schaftsausweisverlängerungsantragsformularblattnummerierungsmaschinenwartungsvertragsentwurf";
/// Prompts that try to be markup, and pictures of every form.
const PROMPTS: [(&str, &[[u32; 2]]); 6] = [
    // Diversity of one picture is unknown, and there is no best of two.
    ("a picture alone", &[[30, 30]]),
    ("{{grid}} </script><script>throw 1</script> \\ \u{202e}back\u{202c} 🦊 e\u{301}", &[[64, 64]; 2]),
    ("an <Owl> & \"friends\"", &[[48, 40], [40, 48], [200, 200]]),
    ("\"><img src=x onerror='throw 2'>", &[[600, 20], [20, 600], [2, 2]]),
    (LONG_WORD, &[[1, 1], [400, 300], [1, 500]]),
    ("a lighthouse on a cliff above the sea at dusk, oil on canvas, warm light in the windows", &[[96, 64], [64, 96]]),
];
const EVALUATE: &str = "evaluate --device cpu --metrics social-reward=random:tiny,diversity --images tuned/set.csv";
const CARDS: usize = 14;

/// A browser with the report of a comparison on these prompts, the metrics of a training run beside it.
fn opened(prompts: &[(&str, &[[u32; 2]])]) -> Option<(Workspace, Browser)> {
    let browser = Browser::start()?;
    let work = Workspace::new();
    write_set(&work, "tuned", 200, prompts);
    write_set(&work, "base", 20, prompts);
    let line = |step: i32| {
        let x = f64::from(step);
        json!({ "step": step * 100, "reward_mean": x.sqrt() - 3.0, "held_out_reward": x.sin() * 1e-7,
                "epsilon_drift": x * 0.01, "loss": -12345.678 / x, "gain": 0.5 })
    };
    work.write("tuned/metrics.jsonl", (1..40).map(|step| format!("{}\n", line(step))).collect::<String>());
    work.write("tuned/config.toml", format!("seed = 3\nprompts = \"{LONG_WORD}\"\n"));
    work.run(&format!("{EVALUATE} --baseline base/set.csv --report report.html")).succeeds();
    browser.open(&work.path("report.html"));
    Some((work, browser))
}

/// The cards that are shown, from the first, by one of their data attributes.
fn cards(browser: &Browser, attribute: &str) -> Vec<String> {
    let found = browser.script(&format!(
        "return [...document.querySelectorAll('.card')].filter((card) => card.checkVisibility())
           .map((card) => card.dataset.{attribute})"
    ));
    serde_json::from_value(found).unwrap()
}

fn text(browser: &Browser, id: &str) -> Value {
    browser.script(&format!("return document.getElementById('{id}').textContent"))
}

/// Presses Tab until this element has the focus.
#[track_caller]
fn tab_to(browser: &Browser, selector: &str) {
    let there = format!("return document.activeElement.matches(`{selector}`)");
    let reached = (0..100).any(|_| {
        browser.press([TAB]);
        browser.script(&there) == true
    });
    assert!(reached, "{selector} cannot be reached by Tab");
}

#[test]
fn the_report_opens_without_errors_or_requests() {
    let Some((work, browser)) = opened(&PROMPTS[1..]) else { return };
    let requests: Vec<String> = (browser.log("performance").iter())
        .map(|entry| serde_json::from_str::<Value>(entry).unwrap())
        .filter(|entry| entry["message"]["method"] == "Network.requestWillBeSent")
        .map(|entry| entry["message"]["params"]["request"]["url"].as_str().unwrap().to_owned())
        .filter(|url| !url.starts_with("data:"))
        .collect();
    assert_eq!(requests, [format!("file://{}", work.path("report.html").display())]);
    let links =
        "[...document.querySelectorAll('[src], [href]')].map((e) => e.getAttribute('src') ?? e.getAttribute('href'))";
    let outside = browser.script(&format!("return {links}.filter((link) => !/^(data:|#)/.test(link))"));
    assert_eq!(outside, json!([]));
    assert_eq!(browser.script("return [...document.querySelectorAll('.charts figcaption')].length"), 7);
    assert_eq!(browser.log("browser"), [""; 0]);
    // The log has what goes wrong.
    browser.script("console.error('wrong')");
    assert!(browser.log("browser")[0].contains("wrong"));
}

#[test]
fn filter_and_order_work_by_keyboard_alone() {
    let Some((_work, browser)) = opened(&PROMPTS) else { return };
    let gains = |attribute: &str| -> Vec<f64> {
        cards(&browser, attribute).iter().map(|gain| gain.parse().unwrap_or(f64::NAN)).collect()
    };
    let by_gain = gains("m0");
    assert_eq!(by_gain.len(), CARDS);
    assert!(by_gain.is_sorted_by(|a, b| a >= b) && by_gain[0] > by_gain[CARDS - 1], "{by_gain:?}");

    tab_to(&browser, "#extremes ~ .cases div:last-child a");
    let worst = browser.script("return document.activeElement.hash").as_str().unwrap().to_owned();
    tab_to(&browser, "#filter");
    browser.press("<OWL> & \"".chars());
    assert_eq!(cards(&browser, "prompt"), [PROMPTS[2].0; 3]);
    assert_eq!(text(&browser, "count"), "3 of 14");
    // A link to a card that the filter hides brings it back.
    browser.script("document.querySelector('.cases div:last-child a').focus()");
    browser.press([ENTER]);
    let in_view = "const { top, bottom } = document.querySelector(location.hash).getBoundingClientRect();
                   return [location.hash, top < innerHeight && bottom > 0 && bottom > top]";
    assert_eq!(browser.script(in_view), json!([worst, true]));
    assert_eq!((text(&browser, "count"), cards(&browser, "m0").len()), (json!("14 of 14"), CARDS));
    tab_to(&browser, "#filter");
    browser.press("zzz".chars());
    assert_eq!((text(&browser, "count"), cards(&browser, "m0").len()), (json!("0 of 14"), 0));
    browser.press([BACKSPACE; 3]);
    assert_eq!((text(&browser, "count"), gains("m0")), (json!("14 of 14"), by_gain.clone()));

    tab_to(&browser, "#metric");
    browser.press([DOWN]);
    let known = |gains: &[f64]| gains.iter().copied().filter(|gain| !gain.is_nan()).collect::<Vec<_>>();
    let by_diversity = gains("m1");
    assert!(known(&by_diversity).is_sorted_by(|a, b| a >= b) && gains("m0") != by_gain, "{by_diversity:?}");
    assert!(by_diversity[CARDS - 1].is_nan(), "an unknown gain is last: {by_diversity:?}");
    tab_to(&browser, "#order");
    browser.press([DOWN]);
    let ascending = gains("m1");
    assert!(known(&ascending).is_sorted() && ascending != by_diversity, "{ascending:?}");
    assert!(ascending[CARDS - 1].is_nan(), "an unknown gain is last: {ascending:?}");
    browser.press([DOWN]);
    // A prompt's cards stand together, by seed.
    let mut prompts = cards(&browser, "prompt");
    prompts.dedup();
    let seeds: Vec<u32> = cards(&browser, "seed").iter().map(|seed| seed.parse().unwrap()).collect();
    assert_eq!((prompts.len(), seeds.iter().filter(|&&seed| seed == 0).count()), (PROMPTS.len(), PROMPTS.len()));
    assert!(seeds.windows(2).all(|pair| pair[1] == 0 || pair[1] == pair[0] + 1), "{seeds:?}");

    // Wide tables scroll by the arrow keys.
    phone(&browser);
    tab_to(&browser, ".scroll");
    browser.press([RIGHT; 5]);
    let scrolled = "return new Promise((done) => { const region = document.activeElement, began = performance.now();
        const look = () => region.scrollLeft > 0 || performance.now() - began > 5000
          ? done(region.scrollLeft > 0) : requestAnimationFrame(look);
        look(); })";
    assert_eq!(browser.script(scrolled), true);
}

/// A viewport of this size.
fn resize(browser: &Browser, [width, height]: [u32; 2], mobile: bool) {
    let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
    browser.devtools("Emulation.setDeviceMetricsOverride", metrics);
}

fn phone(browser: &Browser) {
    resize(browser, [390, 844], true);
}

/// What is wrong with the page in this colour scheme, and a picture of it.
#[track_caller]
fn check_looks(browser: &Browser, name: &str, scheme: &str) {
    let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
    browser.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}-{scheme}.png"));
    let png = browser.screenshot();
    fs_err::write(&picture, &png).unwrap();
    let faults: Vec<String> = serde_json::from_value(browser.script(include_str!("report_browser.js"))).unwrap();
    assert!(faults.is_empty(), "{}: {} faults\n{}", picture.display(), faults.len(), faults.join("\n"));
    let pixels = image::load_from_memory(&png).unwrap().into_rgb8();
    let width = browser.script("return document.documentElement.clientWidth").as_u64().unwrap();
    assert_eq!(u64::from(pixels.width()), width, "{}", picture.display());
    let dark = pixels.pixels().filter(|pixel| pixel.0.iter().all(|&channel| channel < 64)).count();
    let share = dark as f64 / f64::from(pixels.width() * pixels.height());
    let (least, most) = if scheme == "dark" { (0.5, 0.99) } else { (0.001, 0.3) };
    assert!((least..most).contains(&share), "{}: {share} of it is dark", picture.display());
}

#[test]
fn nothing_overlaps_on_a_phone_or_a_desk_in_light_or_dark() {
    let Some((work, browser)) = opened(&PROMPTS[1..]) else { return };
    let looks = |name: &str| ["light", "dark"].map(|scheme| check_looks(&browser, name, scheme));
    phone(&browser);
    looks("phone");
    resize(&browser, [1280, 900], false);
    looks("desk");
    work.run(&format!("{EVALUATE} --report alone.html")).succeeds();
    browser.open(&work.path("alone.html"));
    looks("desk-alone");
    phone(&browser);
    looks("phone-alone");
}
