//! A headless Chromium, driven over W3C WebDriver (<https://www.w3.org/TR/webdriver2/>) and chromedriver's own commands.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Set where a missing Chromium is an error, as in CI after its installation.
const REQUIRED: &str = "SOCIAL_REWARD_REQUIRE_CHROMIUM";

pub(crate) const TAB: char = '\u{e004}';
pub(crate) const ENTER: char = '\u{e007}';
pub(crate) const BACKSPACE: char = '\u{e003}';
pub(crate) const DOWN: char = '\u{e015}';
pub(crate) const RIGHT: char = '\u{e014}';

/// A browser with one page, ended when dropped.
pub(crate) struct Browser {
    driver: Child,
    /// The driver writes to it as long as it lives.
    _said: BufReader<ChildStdout>,
    /// Profile and sockets.
    _scratch: TempDir,
    agent: ureq::Agent,
    server: String,
    session: String,
}

impl Browser {
    /// Starts one; nothing, and the reason on stderr, where Chromium is not installed.
    pub(crate) fn start() -> Option<Self> {
        let [chromium, driver] = ["chromium", "chromedriver"].map(on_path);
        let (Some(chromium), Some(driver)) = (chromium, driver) else {
            let reason = "no `chromium` and `chromedriver` on PATH (Debian: apt install chromium chromium-driver)";
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, but {reason}");
            // Past the capture of the test harness, which shows nothing of a test that passes.
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            std::io::stderr().write_all(format!("{test} is skipped: {reason}\n").as_bytes()).unwrap();
            return None;
        };
        let scratch = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver);
        driver.arg("--port=0").env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = driver.spawn().unwrap();
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let mut lines = said.by_ref().lines().map(Result::unwrap);
        let port =
            lines.find_map(|line| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned()));
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = config.timeout_global(Some(Duration::from_secs(60))).build().into();
        let server = format!("http://127.0.0.1:{}", port.unwrap());
        let mut browser = Self { driver, _said: said, _scratch: scratch, agent, server, session: String::new() };
        // Without a sandbox, which root and containers do not have: the page is ours.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"];
        let capabilities = json!({
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let answer = browser.post("session", json!({ "capabilities": { "alwaysMatch": capabilities } }));
        browser.session = format!("session/{}", answer["sessionId"].as_str().unwrap());
        Some(browser)
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        let mut answer = self.agent.post(format!("{}/{path}", self.server)).send_json(&body).unwrap();
        let mut found: Value = answer.body_mut().with_config().limit(100 << 20).read_json().unwrap();
        assert!(answer.status().is_success(), "{path} {body}: {found}");
        found["value"].take()
    }

    #[track_caller]
    fn command(&self, name: &str, body: Value) -> Value {
        self.post(&format!("{}/{name}", self.session), body)
    }

    #[track_caller]
    pub(crate) fn open(&self, file: &Path) {
        self.command("url", json!({ "url": format!("file://{}", file.display()) }));
    }

    /// Runs the body of a function in the page and gives what it returns.
    #[track_caller]
    pub(crate) fn script(&self, body: &str) -> Value {
        self.command("execute/sync", json!({ "script": body, "args": [] }))
    }

    /// A command of the Chrome DevTools Protocol.
    #[track_caller]
    pub(crate) fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    /// Presses these keys, one after the other, on what has the focus.
    #[track_caller]
    pub(crate) fn press(&self, keys: impl IntoIterator<Item = char>) {
        let stroke = |key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        let strokes: Vec<Value> = keys.into_iter().flat_map(stroke).collect();
        self.command("actions", json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    /// The entries of a log, `browser` (its console) or `performance`, since the last call.
    #[track_caller]
    pub(crate) fn log(&self, kind: &str) -> Vec<String> {
        let entries = self.command("se/log", json!({ "type": kind }));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The whole page as a PNG.
    #[track_caller]
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        let found = self.devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        BASE64_STANDARD.decode(found["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    /// The driver ends its browser, then itself; one that does not answer is killed.
    fn drop(&mut self) {
        self.agent.delete(format!("{}/{}", self.server, self.session)).call().ok();
        self.agent.get(format!("{}/shutdown", self.server)).call().ok();
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}
