//! The text files of an ImageReward folder.

use std::path::{Path, PathBuf};

use reward::rewards::spec::RewardSpec;
use tch::{Device, Kind};

use crate::mutate::check;

#[test]
fn config_and_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/image_reward"));
    for name in ["ImageReward.pt", "med_config.json", "vocab.txt"] {
        fs_err::copy(golden.join(name), folder.path().join(name)).unwrap();
    }
    let spec: RewardSpec = format!("image-reward={}", folder.path().display()).parse().unwrap();
    let load = || spec.load(None, Device::Cpu, Kind::Float).map(|reward| reward.name().to_owned());
    let damaged = |path: &Path| check(path, &fs_err::read(path).unwrap(), load);
    damaged(&folder.path().join("med_config.json"));
    damaged(&folder.path().join("vocab.txt"));
}
