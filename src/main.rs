//! The `social-reward` binary: glue around the library crates, and the only code that prints.

mod cli;
mod commands;
mod demo;
mod failure;
mod progress;
mod report;
mod settings;
mod signals;
#[cfg(all(feature = "torch", target_os = "linux", target_env = "gnu"))]
mod sleep;
#[cfg(feature = "torch")]
mod together;

use std::{panic::catch_unwind, process::ExitCode};

use cli::{Cli, Command, DiffusionCommand, RewardCommand};

fn main() -> ExitCode {
    // libtorch reports errors by panicking; what reaches the user is our error line, not the panic's own output.
    std::panic::set_hook(Box::new(|_| {}));
    let cli = cli::parse(std::env::args_os());
    let done = catch_unwind(|| run(cli)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow::anyhow!("internal error: {}", text.unwrap_or("unknown")))
    });
    done.unwrap_or_else(|error| failure::report(&error, signals::received()))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Reward(command) => match *command {
            RewardCommand::Train(arguments) => commands::train::run(&arguments),
            RewardCommand::Validate(arguments) => commands::validate::run(&arguments),
            RewardCommand::Score(arguments) => commands::score::run(&arguments),
            RewardCommand::Export(arguments) => commands::export::run(&arguments),
        },
        Command::Diffusion(command) => match *command {
            DiffusionCommand::Generate(arguments) => commands::diffusion::generate::run(&arguments),
            DiffusionCommand::Finetune(arguments) => commands::diffusion::finetune::run(&arguments),
            DiffusionCommand::Export(arguments) => commands::diffusion::export::run(&arguments),
            DiffusionCommand::Verify(arguments) => commands::diffusion::verify::run(&arguments),
        },
        Command::Evaluate(arguments) => commands::evaluate::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
    }
}
