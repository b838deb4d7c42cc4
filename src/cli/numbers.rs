//! Numbers on the command line: a refusal names the range, and a negative one is a value, not an unknown flag.

use std::any::TypeId;

use clap::{Arg, Command};

/// The command with every flag of a whole number held to its range, and those of its subcommands.
pub(super) fn ranged(command: Command) -> Command {
    command.mut_args(held).mut_subcommands(ranged)
}

fn held(flag: Arg) -> Arg {
    let kind = flag.get_value_parser().type_id();
    if kind == TypeId::of::<u32>() {
        flag.allow_negative_numbers(true).value_parser(|text: &str| whole(text, u32::MAX))
    } else if kind == TypeId::of::<usize>() {
        flag.allow_negative_numbers(true).value_parser(|text: &str| whole(text, usize::MAX))
    } else if kind == TypeId::of::<u64>() {
        flag.allow_negative_numbers(true).value_parser(|text: &str| whole(text, u64::MAX))
    } else if kind == TypeId::of::<f64>() {
        flag.allow_negative_numbers(true)
    } else {
        flag
    }
}

fn whole<T: std::str::FromStr + std::fmt::Display>(text: &str, most: T) -> Result<T, String> {
    text.parse().map_err(|_| format!("want a whole number from 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use crate::cli::tried;

    #[test]
    fn every_whole_number_is_held_to_its_range() {
        let generate = ["x", "diffusion", "generate"];
        for (flag, value, most) in [
            ("--seed", "-1", "18446744073709551615"),
            ("--seed", "18446744073709551616", "18446744073709551615"),
            ("--seed", "3.5", "18446744073709551615"),
            ("--steps", "-1", "4294967295"),
            ("--steps", "4294967296", "4294967295"),
            ("--batch-size", "many", "4294967295"),
        ] {
            let arguments = generate.into_iter().chain([flag, value]).map(Into::into);
            let Err(error) = tried(arguments) else { panic!("{flag} {value}") };
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2));
            let text = error.to_string();
            assert!(text.contains(value) && text.contains(flag), "{text}");
            assert!(text.contains(&format!("want a whole number from 0 to {most}")), "{text}");
        }
        for command in [["x", "reward", "train"], generate] {
            let most = command.into_iter().chain(["--seed", "18446744073709551615"]).map(Into::into);
            assert!(tried(most).is_ok());
        }
        assert!(tried(["x", "demo", "--seed", "18446744073709551615"].into_iter().map(Into::into)).is_ok());
        assert!(tried(["x", "evaluate", "--max-pixels=-1"].into_iter().map(Into::into)).is_err());
    }
}
