//! What a server is asked and what it answers, as JSON. UniRL's and Flow-Factory's reward servers speak it; flow_grpo's servers
//! have the same fields in a pickle, which is never read here.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{cut, score};

/// How pictures and scores are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// UniRL's `/score`.
    UniRl,
    /// Flow-Factory's `/compute`.
    FlowFactory,
    /// The fields of flow_grpo.
    FlowGrpo,
}

impl Protocol {
    /// By the last part of the URL's `path`.
    pub(super) fn of(path: &str) -> Self {
        match path.trim_end_matches('/').rsplit('/').next() {
            Some("score") => Self::UniRl,
            Some("compute") => Self::FlowFactory,
            _ => Self::FlowGrpo,
        }
    }

    /// The body that asks for the scores of `pngs`, each for its prompt; `label`: the reward's name at the server, where it has one.
    pub(super) fn request(self, label: &str, pngs: &[Vec<u8>], prompts: &[String]) -> Value {
        let images: Vec<String> = pngs.iter().map(|png| STANDARD.encode(png)).collect();
        match self {
            Self::UniRl => {
                let request = |(image, prompt): (&String, &String)| {
                    json!({
                        "history": [{"text": prompt, "image_b64": image}],
                        "required_rewards": [label],
                        "metadata": {},
                    })
                };
                json!({"requests": images.iter().zip(prompts).map(request).collect::<Vec<_>>()})
            }
            Self::FlowFactory => json!({"prompt": prompts, "image": images}),
            Self::FlowGrpo => json!({"images": images, "prompts": prompts, "metadata": {}}),
        }
    }

    /// The scores of `count` pictures that `answer` has, or what is wrong with it.
    pub(super) fn scores(self, label: &str, answer: &Value, count: usize) -> Result<Vec<f32>, String> {
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err(format!("it answers an error: {}", said(error)));
        }
        let fields: &[&str] = match self {
            Self::UniRl => &["results"],
            Self::FlowFactory => &["rewards"],
            Self::FlowGrpo => &["scores", "outputs"],
        };
        let list = fields
            .iter()
            .find_map(|field| answer.get(field)?.as_array())
            .ok_or_else(|| format!("want a list `{}`, got `{}`", fields.join("` or `"), cut(&answer.to_string())))?;
        let failed = answer.get("errors").and_then(Value::as_array).into_iter().flatten().zip(0..);
        for (errors, index) in failed.take(if self == Self::UniRl { count } else { 0 }) {
            if let Some(error) = errors.get(label).filter(|error| !error.is_null()) {
                return Err(format!("picture {index}: {}", said(error)));
            }
        }
        if list.len() != count {
            return Err(format!("want {count} score(s), got {}", list.len()));
        }
        let values = list.iter().enumerate().map(|(index, value)| {
            let value = if self == Self::UniRl { of_reward(label, value) } else { Ok(value) };
            let value = value.map_err(|wrong| format!("picture {index}: {wrong}"))?;
            score(value)
                .ok_or_else(|| format!("picture {index}: want a finite number, got `{}`", cut(&value.to_string())))
        });
        values.collect()
    }
}

/// The value of reward `label` among a picture's `rewards`: its part `score`, or its only part.
fn of_reward<'a>(label: &str, rewards: &'a Value) -> Result<&'a Value, String> {
    let Some(reward) = rewards.get(label) else {
        return Err(format!("no reward `{label}` in `{}`", cut(&rewards.to_string())));
    };
    let Some(parts) = reward.as_object() else { return Ok(reward) };
    let only = parts.values().next().filter(|_| parts.len() == 1);
    parts.get("score").or(only).ok_or_else(|| {
        let names: Vec<&str> = parts.keys().map(String::as_str).collect();
        format!("reward `{label}` has the parts `{}`, none of them `score`", names.join("`, `"))
    })
}

/// A text as it is, anything else as JSON.
fn said(value: &Value) -> String {
    cut(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_the_protocol() {
        for (path, protocol) in [
            ("/score", Protocol::UniRl),
            ("/api/score/", Protocol::UniRl),
            ("/compute", Protocol::FlowFactory),
            ("/", Protocol::FlowGrpo),
            ("", Protocol::FlowGrpo),
            ("/scores", Protocol::FlowGrpo),
        ] {
            assert_eq!(Protocol::of(path), protocol, "{path}");
        }
    }

    #[test]
    fn requests_have_the_published_fields() {
        let request = |protocol: Protocol| protocol.request("ocr", &[b"png".to_vec()], &["a fox".to_owned()]);
        assert_eq!(
            request(Protocol::UniRl),
            json!({"requests": [{
                "history": [{"text": "a fox", "image_b64": "cG5n"}],
                "required_rewards": ["ocr"],
                "metadata": {},
            }]})
        );
        assert_eq!(request(Protocol::FlowFactory), json!({"prompt": ["a fox"], "image": ["cG5n"]}));
        assert_eq!(request(Protocol::FlowGrpo), json!({"images": ["cG5n"], "prompts": ["a fox"], "metadata": {}}));
    }

    #[test]
    fn scores_are_read_and_what_is_wrong_is_said() {
        use Protocol::{FlowFactory, FlowGrpo, UniRl};
        let results = |values: Value| json!({"results": values, "errors": [{}, {}]});
        for (protocol, answer) in [
            (UniRl, results(json!([{"ocr": {"score": 1}}, {"ocr": {"score": 2.5, "length": 7}}]))),
            (UniRl, results(json!([{"ocr": {"accuracy": 1}}, {"ocr": 2.5}]))),
            (FlowFactory, json!({"rewards": [1, 2.5]})),
            (FlowGrpo, json!({"scores": [1, 2.5], "error": null})),
            (FlowGrpo, json!({"outputs": [1, 2.5]})),
        ] {
            assert_eq!(protocol.scores("ocr", &answer, 2), Ok(vec![1.0, 2.5]), "{answer}");
        }
        for (protocol, answer, message) in [
            (UniRl, json!({"results": [{}, {}], "errors": [{}, {"ocr": "no GPU"}]}), "picture 1: no GPU"),
            (
                UniRl,
                results(json!([{"clip": {"score": 1}}, {}])),
                r#"picture 0: no reward `ocr` in `{"clip":{"score":1}}`"#,
            ),
            (
                UniRl,
                results(json!([{"ocr": {"a": 1, "b": 2}}, {}])),
                "picture 0: reward `ocr` has the parts `a`, `b`, none of them `score`",
            ),
            (UniRl, results(json!([{"ocr": {"score": null}}, {}])), "picture 0: want a finite number, got `null`"),
            (FlowFactory, json!({"rewards": [1]}), "want 2 score(s), got 1"),
            (FlowFactory, json!({"rewards": [1, 1e300]}), "picture 1: want a finite number, got `1e+300`"),
            (FlowFactory, json!({"scores": [1, 2]}), r#"want a list `rewards`, got `{"scores":[1,2]}`"#),
            (FlowGrpo, json!({"error": "CUDA out of memory"}), "it answers an error: CUDA out of memory"),
            (FlowGrpo, json!([1, 2]), "want a list `scores` or `outputs`, got `[1,2]`"),
            (FlowGrpo, json!({"scores": [1, "2"]}), r#"picture 1: want a finite number, got `"2"`"#),
        ] {
            assert_eq!(protocol.scores("ocr", &answer, 2), Err(message.to_owned()));
        }
    }
}
