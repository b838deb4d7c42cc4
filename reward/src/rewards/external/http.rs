//! A server as a reward: one POST for a batch of pictures, in the protocol that the path of its URL names.

use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tch::Tensor;
use ureq::http::Uri;

use super::{Limits, Pictures, cut, not_json, protocol::Protocol, tell, tensor};
use crate::{
    Error, Result,
    rewards::reward::{Pending, Reward, check},
};

/// Before a request is sent again; doubled each time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 1 << 28;

/// A reward that a server gives.
pub struct Http {
    client: Client,
}

/// All that a request needs.
#[derive(Clone)]
struct Client {
    label: String,
    url: String,
    protocol: Protocol,
    agent: ureq::Agent,
    timeout: Duration,
    retries: usize,
}

/// Why there are no scores.
enum Failure {
    /// It may be better the next time.
    Passing(Error),
    /// It will be the same the next time.
    Lasting(Error),
}

impl Http {
    /// The reward `label` of the server at `url`, which is asked nothing yet.
    ///
    /// # Errors
    /// No URL.
    pub fn new(label: &str, url: &str, limits: Limits) -> Result<Self> {
        let wrong = |what: &str| Error::usage(format!("reward `{label}`: {url}: {what}"));
        let uri: Uri = url.parse().map_err(|error| wrong("no URL").caused_by(error))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("no host in this URL"))?;
        let timeout = limits.timeout();
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A POST that is sent elsewhere would come as a GET.
            .max_redirects(0);
        if host == "localhost" || host.starts_with("127.") || host == "[::1]" {
            config = config.proxy(None);
        }
        Ok(Self {
            client: Client {
                label: label.to_owned(),
                url: url.to_owned(),
                protocol: Protocol::of(uri.path()),
                agent: config.build().into(),
                timeout,
                retries: limits.restarts,
            },
        })
    }
}

impl Client {
    /// An error with label and URL; a password stays out of messages.
    fn error(&self, what: &str) -> Error {
        let shown = match self.url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?))) {
            Some((scheme, (user, host))) if !user.contains('/') => format!("{scheme}://{host}"),
            _ => self.url.clone(),
        };
        Error::data(format!("reward `{}`: {shown}: {what}", self.label))
    }

    /// The scores of `pictures`, each for its prompt.
    fn scores(&self, pictures: &Pictures, prompts: &[String]) -> Result<Vec<f32>> {
        let body = self.protocol.request(&self.label, &pictures.pngs()?, prompts).to_string();
        let mut pause = PAUSE;
        for _ in 0..self.retries {
            match self.post(&body, prompts.len()) {
                Err(Failure::Passing(error)) => {
                    tell(&self.label, &format!("{error}; asked again"));
                    thread::sleep(pause);
                }
                Err(Failure::Lasting(error)) => return Err(error),
                Ok(scores) => return Ok(scores),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.post(&body, prompts.len()).map_err(|(Failure::Passing(error) | Failure::Lasting(error))| error)
    }

    fn post(&self, body: &str, count: usize) -> Result<Vec<f32>, Failure> {
        let started = Instant::now();
        let request = self.agent.post(&self.url).header("Content-Type", "application/json");
        let unanswered = |error: ureq::Error| match error {
            ureq::Error::Timeout(_) => {
                let what = format!("no answer within {} s", self.timeout.as_secs_f64());
                Failure::Lasting(self.error(&what).hint("reward_timeout allows more"))
            }
            ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => {
                let hint = "is the server running? reward_restarts tries again";
                Failure::Passing(self.error(&format!("no connection: {error}")).hint(hint))
            }
            error => Failure::Lasting(self.error(&error.to_string())),
        };
        let mut response = request.send(body).map_err(unanswered)?;
        let status = response.status();
        let bytes = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec().map_err(unanswered)?;
        let text = String::from_utf8_lossy(&bytes);
        if !status.is_success() {
            let what = format!("status {} after {:.1} s: `{}`", status, started.elapsed().as_secs_f64(), cut(&text));
            let error = self.error(&what);
            return Err(if status.is_server_error() { Failure::Passing(error) } else { Failure::Lasting(error) });
        }
        let Ok(answer) = serde_json::from_slice::<Value>(&bytes) else {
            // Every pickle of a protocol that knows bytes begins so.
            return Err(Failure::Lasting(match bytes.first() {
                Some(0x80) => self
                    .error("it answers a pickle, which is never read: it can hold any code")
                    .hint("the server has to answer JSON"),
                _ => self.error(&format!("it answers {}", not_json(&text))),
            }));
        };
        self.protocol.scores(&self.label, &answer, count).map_err(|wrong| Failure::Lasting(self.error(&wrong)))
    }
}

impl Reward for Http {
    fn name(&self) -> &str {
        &self.client.label
    }

    fn begin<'a>(&'a self, pixels: &Tensor, prompts: &[&str]) -> Result<Pending<'a>> {
        check(pixels, prompts)?;
        let (pictures, client) = (Pictures::new(pixels)?, self.client.clone());
        let prompts: Vec<String> = prompts.iter().map(|prompt| (*prompt).to_owned()).collect();
        let (answer, answers) = channel();
        thread::spawn(move || {
            // Nobody waits any more where this fails.
            let _ = answer.send(client.scores(&pictures, &prompts));
        });
        let pixels = pixels.detach();
        Ok(Box::new(move || {
            let scores = answers.recv().map_err(|_| self.client.error("the request was given up"))??;
            Ok(tensor(&scores, &pixels))
        }))
    }

    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        self.begin(pixels, prompts)?()
    }

    fn differentiable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        thread::JoinHandle,
    };

    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde_json::json;
    use tch::{Device, Kind};

    use super::*;

    /// A server that answers each connection in turn with one of `answers`, status line and body, and gives the requests' bodies.
    /// An answer without a status is never sent.
    fn server(answers: &[(&'static str, String)]) -> (String, JoinHandle<Vec<Value>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let answers = answers.to_vec();
        let asked = thread::spawn(move || {
            let (mut bodies, mut unanswered) = (Vec::new(), Vec::new());
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut request = vec![0; length];
                reader.read_exact(&mut request).unwrap();
                bodies.push(serde_json::from_slice(&request).unwrap());
                match status {
                    "" => unanswered.push(stream),
                    "close" => drop(stream),
                    _ => {
                        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close", body.len());
                        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
                    }
                }
            }
            if !unanswered.is_empty() {
                thread::sleep(Duration::from_secs(2));
            }
            bodies
        });
        (address, asked)
    }

    fn pixels() -> Tensor {
        Tensor::linspace(0.0, 1.0, 2 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).view([2, 3, 4, 5])
    }

    fn scores(url: &str, limits: Limits) -> Result<Vec<f32>> {
        let reward = Http::new("ocr", url, limits).unwrap();
        assert!(!reward.differentiable() && reward.weights().is_empty());
        Ok(Vec::try_from(reward.score(&pixels(), &["a", "b"])?).unwrap())
    }

    #[test]
    fn all_three_protocols_are_spoken() {
        let values = json!([{"ocr": {"score": 1}}, {"ocr": {"score": 2.5}}]);
        for (path, answer, images) in [
            ("/score", json!({"results": values, "errors": [{}, {}]}), "/requests/1/history/0/image_b64"),
            ("/compute?reward=ocr", json!({"rewards": [1, 2.5]}), "/image/1"),
            ("/", json!({"scores": [1, 2.5]}), "/images/1"),
            ("", json!({"outputs": [1, 2.5]}), "/images/1"),
        ] {
            let (address, asked) = server(&[("200 OK", answer.to_string())]);
            assert_eq!(scores(&format!("http://{address}{path}"), Limits::default()).unwrap(), [1.0, 2.5], "{path}");
            let request = asked.join().unwrap().remove(0);
            let png = STANDARD.decode(request.pointer(images).unwrap().as_str().unwrap()).unwrap();
            let second = image::load_from_memory(&png).unwrap().to_rgb8().into_raw();
            assert_eq!(second, Pictures::new(&pixels().narrow(0, 1, 1)).unwrap().rgb, "{path}");
        }
    }

    #[test]
    fn what_a_server_does_wrong_is_said_with_label_and_url() {
        for (status, body, message) in [
            ("404 Not Found", "no such route", "status 404 Not Found after "),
            ("302 Found", "", "status 302 Found after "),
            ("500 Internal Server Error", "traceback", "status 500 Internal Server Error after "),
            ("200 OK", r#"{"error": "CUDA out of memory"}"#, "it answers an error: CUDA out of memory"),
            ("200 OK", r#"{"scores": [1, 2, 3]}"#, "want 2 score(s), got 3"),
            (
                "200 OK",
                r#"{"scores": [1, NaN]}"#,
                r#"it answers `{"scores": [1, NaN]}`, which holds NaN: want finite numbers"#,
            ),
            ("200 OK", r#"{"rewards": [1, 2]}"#, r#"want a list `scores` or `outputs`, got `{"rewards":[1,2]}`"#),
            ("200 OK", "<html>", "it answers `<html>`, which is no JSON"),
            ("close", "", "no connection: "),
        ] {
            let (address, asked) = server(&[(status, body.to_owned())]);
            let error = scores(&format!("http://me:secret@{address}/"), Limits::default()).unwrap_err().to_string();
            let wanted = format!("reward `ocr`: http://{address}/: {message}");
            assert!(error.starts_with(&wanted), "{error}\n{wanted}");
            asked.join().unwrap();
        }
        let error = Http::new("ocr", "http://", Limits::default()).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::Usage);
    }

    #[test]
    fn a_server_that_does_not_answer_is_an_error_in_time() {
        let (address, asked) = server(&[("", String::new())]);
        let limits = Limits { timeout_seconds: 0.5, restarts: 3 };
        let error = scores(&format!("http://{address}"), limits).unwrap_err();
        assert_eq!(error.to_string(), format!("reward `ocr`: http://{address}: no answer within 0.5 s"));
        assert_eq!(asked.join().unwrap().len(), 1);
    }

    #[test]
    fn what_passes_is_tried_again() {
        let good = ("200 OK", json!({"scores": [1, 2.5]}).to_string());
        let bad = [("close", String::new()), ("503 Service Unavailable", String::new())];
        let (address, asked) = server(&[bad[0].clone(), bad[1].clone(), good]);
        let twice = Limits { restarts: 2, ..Limits::default() };
        assert_eq!(scores(&format!("http://{address}"), twice).unwrap(), [1.0, 2.5]);
        assert_eq!(asked.join().unwrap().len(), 3);
        let (address, asked) = server(&bad);
        let error = scores(&format!("http://{address}"), Limits { restarts: 1, ..Limits::default() }).unwrap_err();
        assert!(error.to_string().contains(": status 503 Service Unavailable after "), "{error}");
        asked.join().unwrap();
    }
}
