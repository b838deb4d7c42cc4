//! `social-reward reward export`.

use std::process::ExitCode;

use anyhow::Result;
use reward::{
    Error, output,
    run::checkpoints::replace_folder,
    weights::{
        Checkpoint,
        layout::Layout,
        save::{hugging_face_folder, state_dict},
    },
};

use crate::{
    cli::{ExportArgs, ExportFormat},
    commands,
    progress::Progress,
};

pub(crate) fn run(arguments: &ExportArgs) -> Result<ExitCode> {
    let output = &arguments.output;
    let is_file = matches!(arguments.format, ExportFormat::Openai | ExportFormat::OpenClip);
    if is_file && output.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Error::usage(format!("--output {}: want a name that ends in .safetensors", output.display()))
            .hint("in Python: torch.save(safetensors.torch.load_file(path), \"checkpoint.pth\") makes a .pth of it")
            .into());
    }
    output::check_new(output)?;
    let checkpoint = Checkpoint::open(&arguments.model, arguments.common.open_options()?)?;
    checkpoint.announce(&Progress::new());
    let read = |name: &str, shape: &[usize]| checkpoint.read(name, shape);
    match arguments.format {
        // A folder that is there is filled: it may be somebody's current one.
        ExportFormat::Hf if output.is_dir() => hugging_face_folder(output, &checkpoint.config, &read)?,
        ExportFormat::Hf => replace_folder(output, |partial| hugging_face_folder(partial, &checkpoint.config, &read))?,
        ExportFormat::Openai | ExportFormat::OpenClip => state_dict(output, &checkpoint.config, Layout::OpenAi, &read)?,
    }
    commands::print(&output.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
