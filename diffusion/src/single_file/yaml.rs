//! The block mappings of a YAML file as CompVis and Stability write them beside a checkpoint (`v2-inference-v.yaml`): which
//! scalar stands under which path of keys. Lists and what is nested in them are passed over.

use std::{collections::BTreeMap, path::Path};

use crate::{Error, Result};

/// Scalars by the keys above them, joined by dots: `model.params.parameterization` is `v`.
pub(super) fn scalars(text: &str, path: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    // Keys of the mappings that are open, each with its indentation.
    let mut open: Vec<(usize, String)> = Vec::new();
    // Lines that are indented more belong to a list, a block of text or brackets.
    let mut passed: Option<usize> = None;
    for (number, line) in text.lines().enumerate() {
        let failed = |what: &str| Error::data(format!("{} line {}: {what}", path.display(), number + 1));
        let line = without_comment(line).trim_end();
        let content = line.trim_start_matches(' ');
        let indentation = line.len() - content.len();
        if content.is_empty() || content == "---" || content.starts_with('%') {
            continue;
        }
        if content.starts_with('\t') {
            return Err(failed("indented with a tab, which YAML does not allow"));
        }
        // A list may stand at the column of its key; its entries' own lines are further in.
        let is_entry = content == "-" || content.starts_with("- ");
        if passed.is_some_and(|at| indentation > at || (indentation == at && content.starts_with([']', '}']))) {
            continue;
        }
        passed = None;
        if is_entry {
            passed = Some(indentation);
            continue;
        }
        let Some((key, value)) = content.split_once(": ").or(content.strip_suffix(':').map(|key| (key, ""))) else {
            return Err(failed("not `key: value`"));
        };
        open.retain(|(at, _)| *at < indentation);
        let key = unquoted(key);
        let above = open.iter().map(|(_, key)| key.as_str());
        let full = above.chain([key]).collect::<Vec<_>>().join(".");
        match value.trim() {
            "" => open.push((indentation, key.to_owned())),
            value if value.starts_with(['|', '>', '[', '{', '&', '*', '!']) => {
                passed = Some(indentation);
            }
            value => {
                if found.insert(full, unquoted(value).to_owned()).is_some() {
                    return Err(failed(&format!("`{key}` is said twice")));
                }
            }
        }
    }
    Ok(found)
}

/// Up to a `#` at the start or after a blank, outside quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, letter) in line.char_indices() {
        match (quote, letter) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            _ => {}
        }
        before = letter;
    }
    line
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inside = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or(inside('\'')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_published_files_are_found() {
        let text = r#"model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"  # a comment
    linear_start: 0.00085
    timesteps: 1000
    image_size: 64 # unused
    scheduler_config: # 10000 warmup steps
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [ 10000 ]
        f_start: [
          1.0e-6
        ]
    unet_config:
      params:
        attention_resolutions: [ 4, 2, 1 ]
        channel_mult:
        - 1
        - 2
        num_head_channels: 64
    cond_stage_config:
      params:
        freeze: True
        layer: 'penultimate'
data:
  - model: other
    parameterization: eps
"#;
        let found = scalars(text, Path::new("x.yaml")).unwrap();
        for (key, value) in [
            ("model.params.parameterization", "v"),
            ("model.params.linear_start", "0.00085"),
            ("model.params.image_size", "64"),
            ("model.params.unet_config.params.num_head_channels", "64"),
            ("model.params.cond_stage_config.params.layer", "penultimate"),
        ] {
            assert_eq!(found.get(key).map(String::as_str), Some(value), "{key}: {found:?}");
        }
        assert!(!found.contains_key("data.parameterization"));
    }

    #[test]
    fn what_is_not_understood_is_named_by_line() {
        let error = |text: &str| scalars(text, Path::new("x.yaml")).unwrap_err().to_string();
        assert_eq!(error("model:\n  params\n"), "x.yaml line 2: not `key: value`");
        assert_eq!(error("model:\n\tparams: 1\n"), "x.yaml line 2: indented with a tab, which YAML does not allow");
        assert_eq!(error("a: 1\na: 2\n"), "x.yaml line 2: `a` is said twice");
    }
}
