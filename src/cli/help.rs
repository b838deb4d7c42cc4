//! Help that fits the terminal: examples stay lines that a shell reads, prose is wrapped as a whole.

use clap::Command;
use rustix::termios::tcgetwinsize;

/// Columns where nothing says how many there are, and at most: lines longer than this are hard to read.
const COLUMNS: usize = 100;

/// The command with the text after its help, and that of all commands below it, fitted to the terminal.
pub(super) fn fitted(command: Command) -> Command {
    let columns = |size: rustix::termios::Winsize| usize::from(size.ws_col);
    let shown = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stderr())).ok().map(columns);
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = shown.or_else(said).filter(|width| *width > 0).unwrap_or(COLUMNS).min(COLUMNS);
    fitted_to(command, width)
}

fn fitted_to(command: Command, width: usize) -> Command {
    let text = command.get_after_help().map(|text| fit(&text.to_string(), width));
    let command = match text {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(|below| fitted_to(below, width))
}

/// Lines that are indented are examples: one that is too long goes on behind a `\`, its comment goes above it; what ends in a
/// colon says what the next one does. Lines that are not indented, up to the next empty line, are one line: clap wraps it.
fn fit(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut prose = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        match lines.last_mut().filter(|_| prose && is_prose) {
            Some(last) => *last = format!("{last} {line}"),
            None if line.chars().count() <= width || is_prose || line.ends_with(':') => lines.push(line.to_owned()),
            None => lines.extend(example(line, width)),
        }
        prose = is_prose;
    }
    lines.join("\n")
}

fn example(line: &str, width: usize) -> Vec<String> {
    let indent = &line[..line.len() - line.trim_start().len()];
    let (command, comment) = line.split_once(" # ").map_or((line, None), |(command, comment)| (command, Some(comment)));
    let (command, end) = command.trim().strip_suffix('\\').map_or((command, ""), |command| (command, " \\"));
    let mut lines: Vec<String> = comment.map(|comment| format!("{indent}# {}", comment.trim())).into_iter().collect();
    let mut current = String::new();
    for word in words(command.trim()) {
        // Room for the ` \` that follows.
        if !current.is_empty() && indent.len() + current.chars().count() + 1 + word.chars().count() + 2 > width {
            lines.push(format!("{indent}{current} \\"));
            current = "  ".to_owned();
        } else if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(format!("{indent}{current}{end}"));
    lines
}

/// The words of a command, of which one may be quoted, and a flag with its value.
fn words(command: &str) -> Vec<&str> {
    let (mut words, mut quoted, mut start) = (Vec::new(), false, 0);
    for (place, letter) in command.char_indices() {
        quoted ^= letter == '"';
        let is_value =
            command[start..place].starts_with("--") && !command[place..].trim_start().starts_with(['-', '\\']);
        let flag_goes_on = is_value && !command[start..place].contains(' ');
        if letter == ' ' && !quoted && !flag_goes_on {
            words.push(&command[start..place]);
            start = place + 1;
        }
    }
    words.push(&command[start..]);
    words
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn an_example_goes_on_as_a_shell_reads_it() {
        let text = "Examples:\n  tool make --from \"a red fox in snow\" --to b   # quick\n  tool x\n\nSome prose\nin two lines.\n\nMore.";
        let wanted = "Examples:\n  # quick\n  tool make \\\n    --from \"a red fox in snow\" \\\n    --to b\n  tool x\n\nSome prose in two lines.\n\nMore.";
        assert_eq!(fit(text, 32), wanted);
        assert_eq!(fit(text, 100), text.replace("prose\nin", "prose in"));
        assert_eq!(fit("  tool --a one \\\n    --b two", 12), "  tool \\\n    --a one \\\n    --b two");
    }

    /// No line of an example is broken by clap, at any width of a terminal.
    #[test]
    fn examples_of_every_command_fit() {
        fn check(command: &Command, width: usize) {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text
                .lines()
                .filter(|line| line.starts_with(' ') && !line.trim_start().starts_with('#') && !line.ends_with(':'))
            {
                assert!(line.chars().count() <= width, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(|below| check(below, width));
        }
        for width in [80, 100] {
            check(&fitted_to(Cli::command(), width), width);
        }
    }

    #[test]
    fn evaluate_names_all_metrics() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("evaluate").unwrap().render_long_help().to_string();
        for name in reward::evaluate::metric::MetricName::all() {
            assert!(help.contains(name.as_str()), "{}", name.as_str());
        }
    }

    /// Each printed list of values is the type's, and each printed default is the settings'.
    #[cfg(feature = "torch")]
    #[test]
    fn help_says_what_the_code_does() {
        use diffusion::{
            advantage::Deviation,
            finetune::{Checkpointing, FinetuneConfig, RewardCombination, RewardScale, Train},
            generate::GenerateConfig,
            objective::Shaping,
            preference::{PreferenceLoss, Utility},
            schedule::SamplerName,
        };
        use reward::{device::Precision, loss::LossName, optim::Schedule, train::config::TrainConfig};
        let root = Cli::command();
        let command = |path: &[&str]| {
            path.iter().fold(root.clone(), |command, name| command.find_subcommand(name).unwrap().clone())
        };
        let values = |path: &[&str], flag: &str| -> Vec<String> {
            let command = command(path);
            let argument = command.get_arguments().find(|argument| argument.get_long() == Some(flag)).unwrap();
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
        };
        let (train, finetune, generate) = (["reward", "train"], ["diffusion", "finetune"], ["diffusion", "generate"]);
        assert_eq!(values(&train, "loss-name"), LossName::NAMES);
        assert_eq!(values(&train, "schedule"), Schedule::NAMES);
        assert_eq!(values(&train, "precision"), Precision::NAMES);
        assert_eq!(values(&finetune, "algorithm"), diffusion::algorithm::ALL.map(|method| method.name));
        assert_eq!(values(&finetune, "reward-scale"), RewardScale::NAMES);
        assert_eq!(values(&finetune, "schedule"), Schedule::NAMES);
        assert_eq!(values(&finetune, "train"), Train::NAMES);
        assert_eq!(values(&finetune, "shaping"), Shaping::NAMES);
        assert_eq!(values(&finetune, "gradient-checkpointing"), Checkpointing::NAMES);
        assert_eq!(values(&finetune, "precision"), Precision::NAMES);
        assert_eq!(values(&finetune, "scheduler"), SamplerName::NAMES);
        assert_eq!(values(&finetune, "deviation"), Deviation::NAMES);
        assert_eq!(values(&finetune, "reward-combination"), RewardCombination::NAMES);
        assert_eq!(values(&finetune, "preference-loss"), PreferenceLoss::NAMES);
        assert_eq!(values(&finetune, "utility"), Utility::NAMES);
        assert_eq!(values(&generate, "scheduler"), SamplerName::NAMES);
        assert_eq!(values(&generate, "precision"), Precision::NAMES);
        let mut compared = 0;
        for (path, defaults) in [
            (train, serde_json::to_value(TrainConfig::default()).unwrap()),
            (finetune, serde_json::to_value(FinetuneConfig::default()).unwrap()),
            (generate, serde_json::to_value(GenerateConfig::default()).unwrap()),
        ] {
            for argument in command(&path).get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let said = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
                let key = argument.get_id().as_str();
                let (Some((said, _)), Some(default)) = (said, defaults.get(key)) else { continue };
                // What a value means may follow it.
                let value = said.split([',', ';']).next().unwrap_or(said);
                let same = match default {
                    serde_json::Value::Number(number) => value.parse().ok() == number.as_f64(),
                    serde_json::Value::String(text) => text == value,
                    serde_json::Value::Bool(set) => value == if *set { "true" } else { "false" },
                    serde_json::Value::Array(all) => {
                        let said: Vec<&str> = said.split([' ', ',']).filter(|word| !word.is_empty()).collect();
                        all.iter().filter_map(serde_json::Value::as_str).eq(said)
                    }
                    // What the code finds out is told in words.
                    _ => continue,
                };
                assert!(same, "{path:?} --{key}: help says {said}, the code {default}");
                compared += 1;
            }
        }
        assert!(compared > 40, "{compared}");
    }
}
