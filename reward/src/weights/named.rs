//! Weights and folders that are no CLIP of the kind that is read, named as what they are.

use std::path::Path;

use crate::{Error, Result};

/// Marks of other models in their keys, as parts of a key, with what they are and the way out.
const OTHERS: [(&str, &str, &str); 19] = [
    ("visual.attnpool", "a CLIP with a ResNet image tower (RN50 and its like)", VIT),
    ("visual.layer1", "a CLIP with a ResNet image tower (RN50 and its like)", VIT),
    ("vision_model.head.probe", "SigLIP", VIT),
    ("logit_bias", "SigLIP (it has a `logit_bias`)", VIT),
    ("visual.trunk", "a CLIP with an image tower of timm", VIT),
    ("text.transformer.embeddings", "a CLIP with a text tower of transformers", VIT),
    ("text.transformer.encoder", "a CLIP with a text tower of transformers", VIT),
    ("text_decoder", "CoCa", VIT),
    ("blip", "ImageReward", "give its folder as image-reward=FOLDER where rewards and metrics are named"),
    ("visual_encoder", "BLIP", VIT),
    ("model.diffusion_model", "a whole Stable Diffusion checkpoint", DIFFUSION),
    ("down_blocks", "a UNet or VAE of Stable Diffusion", DIFFUSION),
    ("lora_down", "a LoRA", LORA),
    ("lora_up", "a LoRA", LORA),
    ("lora_A", "a LoRA", LORA),
    ("flat_param", "one process's part of an FSDP checkpoint (flattened parameters)", FSDP),
    ("_flat_param", "one process's part of an FSDP checkpoint (flattened parameters)", FSDP),
    ("fp32_flat_groups", "one process's optimizer state of DeepSpeed", DEEPSPEED),
    ("single_partition_of_fp32_groups", "one process's optimizer state of DeepSpeed", DEEPSPEED),
];

const VIT: &str =
    "CLIPs with a vision transformer are read: OpenAI's, open_clip's and Hugging Face's ViT-B, L, H, g and G";
const DIFFUSION: &str = "it is a --model of the `diffusion` commands; a reward is a CLIP";
const LORA: &str = "it is a --lora of the `diffusion` commands; a reward is a CLIP, its adapters merged";
const FSDP: &str = "save the whole state dict with StateDictType.FULL_STATE_DICT";
const DEEPSPEED: &str = "run the zero_to_fp32.py that DeepSpeed put beside it, and give what it writes";

/// The error for the weights of another model than a CLIP, told by their keys; `None` for what is not known.
pub(super) fn other<'a>(label: &str, keys: impl Iterator<Item = &'a str> + Clone) -> Option<Error> {
    let has = |mark: &str| {
        let parts = mark.split('.').count();
        keys.clone().any(|key| {
            key == mark || key.split('.').collect::<Vec<_>>().windows(parts).any(|part| part.join(".") == mark)
        })
    };
    let (_, what, hint) = OTHERS.iter().find(|(mark, ..)| has(mark))?;
    Some(Error::data(format!("{label}: {what}, wanted a CLIP ViT")).hint(*hint))
}

/// The error for a part of a checkpoint that DeepSpeed or Megatron split over processes, told by its name; `None` for others.
pub(super) fn part(path: &Path) -> Option<Error> {
    let name = path.file_name()?.to_str()?;
    let label = path.display();
    if name.ends_with(".distcp") {
        return Some(Error::data(format!("{label}: one part of a torch.distributed.checkpoint")).hint(DCP));
    }
    let deepspeed = name.contains("mp_rank_") || name.starts_with("zero_pp_rank_");
    deepspeed.then(|| Error::data(format!("{label}: one process's part of a DeepSpeed checkpoint")).hint(DEEPSPEED))
}

const DCP: &str = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt writes one file";

/// Refuses a folder without a config of a CLIP as what it is.
///
/// # Errors
/// Always, unless there is a `config.json` or `open_clip_config.json`.
pub(super) fn check_folder(folder: &Path) -> Result<()> {
    if ["config.json", "open_clip_config.json"].iter().any(|name| folder.join(name).is_file()) {
        return Ok(());
    }
    let label = folder.display();
    let inside = |name: &str| folder.join(name);
    let mut models: Vec<String> =
        ["best", "final"].map(inside).iter().filter(|path| path.join("config.json").is_file()).map(shown).collect();
    models.extend(newest_step(&inside("checkpoints")).or_else(|| newest_step(folder)));
    if !models.is_empty() {
        return Err(Error::data(format!("{label}: the folder of a training run, not a model"))
            .hint(format!("give one of its models: {}", models.join(", "))));
    }
    if inside("model_index.json").is_file() {
        return Err(Error::data(format!("{label}: a Stable Diffusion pipeline, want a CLIP")).hint(DIFFUSION));
    }
    let mut weights: Vec<String> = fs_err::read_dir(folder)?.flatten().map(|entry| shown(entry.path())).collect();
    weights.sort();
    if weights.iter().any(|name| name.ends_with(".distcp")) {
        return Err(Error::data(format!("{label}: a torch.distributed.checkpoint, split over processes")).hint(DCP));
    }
    let error = Error::data(format!("{label}: no config.json in this folder"));
    let is_weights = |name: &&String| [".pt", ".pth", ".safetensors", ".bin"].iter().any(|end| name.ends_with(end));
    Err(match weights.iter().filter(is_weights).collect::<Vec<_>>()[..] {
        [only] => error.hint(format!("a state dict is given by its file: {only}")),
        _ => error.hint(
            "a model folder holds config.json and model.safetensors, as transformers' save_pretrained writes them",
        ),
    })
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

/// The model of the last step among `step-N`.
fn newest_step(checkpoints: &Path) -> Option<String> {
    let steps = fs_err::read_dir(checkpoints).ok()?.flatten().map(|entry| entry.path());
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let models = steps.filter(|path| path.join("config.json").is_file());
    models.filter_map(|path| Some((number(&path)?, path))).max().map(|(_, path)| shown(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_models_are_told_by_their_keys() {
        let said =
            |keys: &[&str]| other("x.pt", keys.iter().copied()).map(|error| error.to_string()).unwrap_or_default();
        for (keys, wanted) in [
            (vec!["visual.conv1.weight", "visual.layer1.0.conv1.weight"], "ResNet"),
            (vec!["visual.trunk.patch_embed.proj.weight", "text.token_embedding.weight"], "timm"),
            (vec!["visual.trunk.patch_embed.proj.weight", "logit_bias"], "SigLIP"),
            (vec!["module.state_dict._fsdp_wrapped_module._flat_param"], "FSDP"),
            (vec!["optimizer_state_dict.fp32_flat_groups.0"], "DeepSpeed"),
            (vec!["lora_unet_down_blocks_0.lora_down.weight"], "a LoRA"),
            (vec!["down_blocks.0.resnets.0.conv1.weight"], "UNet"),
        ] {
            assert!(said(&keys).contains(wanted), "{keys:?}: {}", said(&keys));
        }
        assert_eq!(said(&["visual.conv1.weight", "ln_final.weight", "my_blip_head.weight"]), "");
    }

    #[test]
    fn the_folder_of_a_run_names_its_models() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        for model in ["final", "checkpoints/step-9", "checkpoints/step-10"] {
            fs_err::create_dir_all(run.join(model)).unwrap();
            fs_err::write(run.join(model).join("config.json"), "{}").unwrap();
        }
        fs_err::create_dir(run.join("best")).unwrap();
        let error = check_folder(run).unwrap_err();
        assert!(error.to_string().ends_with("the folder of a training run, not a model"), "{error}");
        let wanted = format!("give one of its models: {0}/final, {0}/checkpoints/step-10", run.display());
        assert_eq!(error.hint_text(), Some(wanted.as_str()));
        let error = check_folder(&run.join("checkpoints")).unwrap_err();
        assert!(error.hint_text().unwrap().ends_with("checkpoints/step-10"), "{error:?}");
        assert!(check_folder(&run.join("final")).is_ok());
        fs_err::write(run.join("best/clip.pt"), "").unwrap();
        assert!(check_folder(&run.join("best")).unwrap_err().hint_text().unwrap().ends_with("best/clip.pt"));
    }
}
