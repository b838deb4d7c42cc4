//! Numbers on the command line: a refusal names the range, and a negative one is a value, not an unknown flag.

use std::any::TypeId;

use clap::{Arg, Command};

/// The command with every flag of a whole number held to its range, and those of its subcommands.
pub(super) fn ranged(command: Command) -> Command {
    command.mut_args(held).mut_subcommands(ranged)
}

/// The most that TOML, which flags are layered over, holds as a number; a seed is a string there above it.
const MOST: u64 = i64::MAX as u64;

fn held(flag: Arg) -> Arg {
    let kind = flag.get_value_parser().type_id();
    let most = if flag.get_id() == "seed" { u64::MAX } else { MOST };
    if kind == TypeId::of::<u32>() {
        flag.allow_negative_numbers(true).value_parser(|text: &str| whole(text, u32::MAX))
    } else if kind == TypeId::of::<usize>() {
        flag.allow_negative_numbers(true).value_parser(|text: &str| whole(text, MOST as usize))
    } else if kind == TypeId::of::<u64>() {
        flag.allow_negative_numbers(true).value_parser(move |text: &str| whole(text, most))
    } else if kind == TypeId::of::<f64>() {
        flag.allow_negative_numbers(true)
    } else {
        flag
    }
}

fn whole<T: std::str::FromStr + PartialOrd + std::fmt::Display>(text: &str, most: T) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| *number <= most);
    number.ok_or_else(|| format!("want a whole number from 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use crate::cli::tried;

    #[test]
    fn every_whole_number_is_held_to_its_range() {
        let (generate, evaluate) = (["diffusion", "generate"], ["evaluate", "--json"]);
        for (command, flag, value, most) in [
            (generate, "--seed", "-1", "18446744073709551615"),
            (generate, "--seed", "18446744073709551616", "18446744073709551615"),
            (generate, "--seed", "3.5", "18446744073709551615"),
            (generate, "--steps", "-1", "4294967295"),
            (generate, "--steps", "4294967296", "4294967295"),
            (generate, "--batch-size", "many", "4294967295"),
            (evaluate, "--max-pixels", "-1", "9223372036854775807"),
            (evaluate, "--max-pixels", "9223372036854775808", "9223372036854775807"),
            (evaluate, "--num-workers", "18446744073709551615", "9223372036854775807"),
        ] {
            let arguments = ["x"].into_iter().chain(command).chain([flag, value]).map(Into::into);
            let Err(error) = tried(arguments) else { panic!("{flag} {value}") };
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2));
            let text = error.to_string();
            assert!(text.contains(value) && text.contains(flag), "{text}");
            assert!(text.contains(&format!("want a whole number from 0 to {most}")), "{text}");
        }
        for command in [&["reward", "train"][..], &generate, &evaluate, &["demo"]] {
            let most = ["x"].iter().chain(command).chain(&["--seed", "18446744073709551615"]).map(Into::into);
            assert!(tried(most).is_ok());
        }
    }
}
