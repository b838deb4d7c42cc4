//! Where to compute and how exactly: `--device auto|cpu|cuda[:N]`, `--precision fp32|bf16`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

#[cfg(feature = "torch")]
use crate::cuda;
use crate::{Error, Result, closed_set};

/// Where the user wants to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// CUDA where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{name}` is no device: want auto, cpu, cuda or cuda:N")),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

impl DeviceName {
    /// The device in libtorch's terms. Of several processes on a machine each has a GPU: `auto` and `cuda`, which is `cuda:0`, are that
    /// of `local_rank`.
    ///
    /// # Errors
    /// CUDA asked for and not there.
    #[cfg(feature = "torch")]
    pub fn resolve(self, local_rank: usize) -> Result<tch::Device> {
        let count = if self == Self::Cpu { 0 } else { cuda::device_count() };
        match self {
            Self::Auto | Self::Cuda(0) if count > 0 => Ok(tch::Device::Cuda(local_rank % count)),
            Self::Auto | Self::Cpu => Ok(tch::Device::Cpu),
            Self::Cuda(index) if index < count => Ok(tch::Device::Cuda(index)),
            Self::Cuda(_) => Err(Error::data(format!("--device {self}: {count} CUDA device(s) here"))
                .hint("`social-reward doctor` says what is missing; --device auto falls back to the CPU")),
        }
    }

    /// The device of a process that has number `local_rank` on its machine, by name.
    #[cfg(feature = "torch")]
    pub fn of_rank(self, local_rank: usize) -> Self {
        match self.resolve(local_rank) {
            Ok(tch::Device::Cuda(index)) if local_rank > 0 => Self::Cuda(index),
            _ => self,
        }
    }

    /// The portable build has one device.
    #[cfg(not(feature = "torch"))]
    pub fn of_rank(self, _: usize) -> Self {
        self
    }

    /// The portable build computes on the CPU only.
    ///
    /// # Errors
    /// CUDA asked for.
    #[cfg(not(feature = "torch"))]
    pub fn check_portable(self) -> Result<()> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(_) => {
                Err(Error::data(format!("--device {self}: this is the portable build, which computes on the CPU"))
                    .hint("build with default features for CUDA (`make setup`)"))
            }
        }
    }
}

closed_set! {
    /// Kind of the activations and of the weights that are not trained.
    pub enum Precision: "precision" {
        /// 32-bit floats.
        Fp32 = "fp32",
        /// bfloat16 activations and frozen weights; what trains, LayerNorm and the losses stay in fp32.
        Bf16 = "bf16",
    }
}

impl Precision {
    /// In libtorch's terms.
    #[cfg(feature = "torch")]
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::Fp32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
        }
    }
}
