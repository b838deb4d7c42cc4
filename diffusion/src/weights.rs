//! Strict weights: layers are constructed from the tensors of a checkpoint under diffusers' own key names. What is missing,
//! mis-shaped or left over is one error at the end. Nothing is ever initialised and then overwritten.

use std::{collections::BTreeMap, ops::Range};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reward::weights::file::TensorFile;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    layer::{Adapter, AdapterSwitch, Attached, Conv2d, GroupNorm, Handle, LayerNorm, Linear},
};

/// Where the value of a key is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Index of the file.
    pub file: usize,
    /// The tensor's name there.
    pub name: String,
    /// Only these rows of it (a part of fused queries, keys and values).
    pub rows: Option<Range<usize>>,
}

/// The tensors one model is built from, taken by key and shape.
pub struct Weights {
    source: Source,
    device: Device,
    kind: Kind,
    trained: bool,
    /// Whether images stay contiguous on a CPU, and do not become channels last.
    contiguous: bool,
    adapters: BTreeMap<String, Adapter>,
    taken: Parameters,
    problems: Vec<String>,
    /// The first tensor that could not be read.
    failed: Option<Error>,
    /// Some of the problems: keys or shapes are not the architecture's.
    differs: bool,
}

enum Source {
    Random { seed: u64 },
    Shapes,
    Files { label: String, files: Vec<TensorFile>, place: BTreeMap<String, Stored> },
}

/// What a model holds: handles on the tensors of its layers.
#[derive(Debug)]
pub struct Parameters {
    /// Every weight by its diffusers key.
    pub tensors: BTreeMap<String, Tensor>,
    /// Every adapter by the name of its layer.
    pub adapted: BTreeMap<String, Adapter>,
    /// Whether the adapters take part.
    pub switch: AdapterSwitch,
    /// Where the tensors are.
    pub device: Device,
    /// The kind that activations are computed in.
    pub kind: Kind,
}

impl Parameters {
    /// The tensors that require gradients by name: weights by their key, adapters by `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        let weights = self.tensors.iter().map(|(key, tensor)| (key.clone(), tensor));
        let adapters = self.adapted.iter().flat_map(|(layer, adapter)| {
            [("A", &adapter.down), ("B", &adapter.up)]
                .map(|(part, tensor)| (format!("{layer}.lora_{part}.weight"), tensor))
        });
        let trained = weights.chain(adapters).filter(|(_, tensor)| tensor.requires_grad());
        trained.map(|(name, tensor)| (name, tensor.shallow_clone())).collect()
    }
}

/// What a random parameter looks like.
enum Initial {
    Constant(f64),
    Deviation(f64),
}

impl Initial {
    /// By the rank of its tensor and the end of its name: PyTorch's defaults, with embeddings as CLIP initialises them.
    fn of(key: &str, shape: &[i64]) -> Self {
        let fan_in: i64 = shape.iter().skip(1).product();
        match shape {
            _ if key.ends_with("bias") => Self::Deviation(0.02),
            _ if key.contains("embedding.") => Self::Deviation(0.02),
            [_] => Self::Constant(1.0),
            _ => Self::Deviation((fan_in as f64).powf(-0.5)),
        }
    }
}

impl Weights {
    /// From files; `place` says where each of the model's keys is stored, `label` what the user calls them.
    pub fn from_files(label: String, files: Vec<TensorFile>, place: BTreeMap<String, Stored>) -> Self {
        Self::new(Source::Files { label, files, place })
    }

    /// Seeded random values of a realistic scale. A tensor's values depend on its key, its shape and `seed` only.
    pub fn random(seed: u64) -> Self {
        Self::new(Source::Random { seed })
    }

    /// Zeros that take no memory: a model built of them tells its keys and shapes, and computes nothing.
    pub fn shapes() -> Self {
        Self::new(Source::Shapes)
    }

    fn new(source: Source) -> Self {
        let (device, kind) = (Device::Cpu, Kind::Float);
        let (tensors, adapted) = Default::default();
        Self {
            source,
            device,
            kind,
            trained: false,
            contiguous: false,
            adapters: BTreeMap::new(),
            taken: Parameters { tensors, adapted, switch: AdapterSwitch::default(), device, kind },
            problems: Vec::new(),
            failed: None,
            differs: false,
        }
    }

    /// Puts the tensors on `device`; activations, and weights that do not train, are of `kind`. By default fp32 on the CPU.
    #[must_use]
    pub fn to(self, device: Device, kind: Kind) -> Self {
        Self { device, kind, ..self }
    }

    /// Weights become fp32 leaves with gradients. By default they have none.
    #[must_use]
    pub fn trained(self, trained: bool) -> Self {
        Self { trained, ..self }
    }

    /// Images stay contiguous on a CPU where nothing but adapters trains. This is for narrow models, whose GroupNorms take ten
    /// times as long on images that are channels last, more than all else gains.
    #[must_use]
    pub(crate) fn contiguous(self, contiguous: bool) -> Self {
        Self { contiguous, ..self }
    }

    /// Adapters by layer name (`down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`), each picked up by the layer
    /// built under that name.
    #[must_use]
    pub fn adapters(self, adapters: BTreeMap<String, Adapter>) -> Self {
        Self { adapters, ..self }
    }

    /// The same tensors under other keys. Where two would get the same key, the second keeps its own and is left over.
    #[must_use]
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        if let Source::Files { place, .. } = &mut self.source {
            let mut renamed = BTreeMap::new();
            for (key, stored) in std::mem::take(place) {
                let new = rename(&key);
                let key = if renamed.contains_key(&new) { key } else { new };
                renamed.insert(key, stored);
            }
            *place = renamed;
        }
        self
    }

    /// Drops the tensor under `key`, if there is one.
    pub fn ignore(&mut self, key: &str) {
        if let Source::Files { place, .. } = &mut self.source {
            place.remove(key);
        }
    }

    /// The tensor under `key`. One that is missing or has another shape is noted for [`Weights::finish`], and zeros are
    /// given. Shapes that differ in ones at their end (1×1 convolutions and linear layers) are the same.
    pub fn tensor(&mut self, key: &str, shape: &[i64]) -> Tensor {
        self.take(key, shape, false)
    }

    fn take(&mut self, key: &str, shape: &[i64], channels_last: bool) -> Tensor {
        let kind = if self.trained { Kind::Float } else { self.kind };
        let read = match &mut self.source {
            Source::Random { seed } => Ok(random(*seed, key, shape)),
            Source::Shapes => {
                let zero = Tensor::zeros([1], (kind, self.device)).expand(shape, false);
                self.taken.tensors.insert(key.to_owned(), zero.shallow_clone());
                return zero;
            }
            Source::Files { files, place, .. } => match place.remove(key) {
                Some(stored) => read(&files[stored.file], &stored, shape),
                None => Err(Problem::Misfit("`{key}` is missing".to_owned())),
            },
        };
        let tensor = match read {
            Ok(tensor) => {
                let tensor = if channels_last { in_channels_last(&tensor) } else { tensor };
                tensor.to_device(self.device).to_kind(kind).set_requires_grad(self.trained)
            }
            Err(problem) => {
                match problem {
                    Problem::Misfit(problem) => {
                        self.differs |= problem.ends_with("is missing") || problem.contains("has shape");
                        self.problems.push(problem.replace("{key}", key));
                    }
                    Problem::Failed(error) => drop(self.failed.get_or_insert(error)),
                }
                // Takes no memory: the shape is a config's word, which may be anything.
                Tensor::zeros([1], (kind, self.device)).expand(shape, false)
            }
        };
        self.taken.tensors.insert(key.to_owned(), tensor.shallow_clone());
        tensor
    }

    /// A linear layer `[outputs, inputs]`.
    pub fn linear(&mut self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs]);
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[outputs]));
        Linear { weight, bias, attached: self.attach(name, &[inputs], outputs) }
    }

    /// A 1×1 convolution with a bias, `[outputs, inputs, 1, 1]`, as a linear layer on channels.
    pub fn pointwise(&mut self, name: &str, inputs: i64, outputs: i64) -> Linear {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs, 1, 1]);
        let bias = Some(self.tensor(&format!("{name}.bias"), &[outputs]));
        Linear { weight, bias, attached: self.attach(name, &[inputs, 1, 1], outputs) }
    }

    /// A convolution with a square kernel and a bias.
    pub fn conv2d(&mut self, name: &str, inputs: i64, outputs: i64, kernel: i64, stride: i64, padding: i64) -> Conv2d {
        // libtorch computes in the memory format of the kernel and hands it on: on a CPU, channels last spares oneDNN
        // most of its reordering, and transformers their copies.
        let channels_last = self.device == Device::Cpu && !self.trained && !self.contiguous;
        let weight = self.take(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel], channels_last);
        let bias = Some(self.tensor(&format!("{name}.bias"), &[outputs]));
        let attached = self.attach(name, &[inputs, kernel, kernel], outputs);
        Conv2d { weight, bias, stride, padding, attached }
    }

    /// A GroupNorm of `channels` in `groups`.
    pub fn group_norm(&mut self, name: &str, groups: i64, channels: i64, eps: f64) -> GroupNorm {
        let weight = self.tensor(&format!("{name}.weight"), &[channels]);
        let contiguous = self.contiguous && !self.trained;
        GroupNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[channels]), groups, eps, contiguous }
    }

    /// A LayerNorm over `width`.
    pub fn layer_norm(&mut self, name: &str, width: i64, eps: f64) -> LayerNorm {
        let weight = self.tensor(&format!("{name}.weight"), &[width]);
        LayerNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[width]), eps }
    }

    /// The adapter of layer `name`, whose weight is `[outputs, inner..]`.
    fn attach(&mut self, name: &str, inner: &[i64], outputs: i64) -> Option<Attached> {
        let adapter = self.adapters.remove(name)?;
        let rank = adapter.down.size().first().copied().unwrap_or_default();
        let down = [&[rank], inner].concat();
        let up = [&[outputs, rank], &vec![1; inner.len() - 1][..]].concat();
        let (found_down, found_up) = (adapter.down.size(), adapter.up.size());
        if rank == 0 || !same_shape(&found_down, &down) || !same_shape(&found_up, &up) {
            self.problems.push(format!(
                "the adapter of `{name}` has shapes {found_down:?} and {found_up:?}, want [rank, {}] and [{outputs}, rank]",
                inner.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
            ));
            return None;
        }
        let adapter = adapter.to(self.device);
        let shaped = |tensor: &Tensor, shape: &[i64]| match tensor.size() == shape {
            true => tensor.shallow_clone(),
            false => tensor.detach().reshape(shape).set_requires_grad(tensor.requires_grad()),
        };
        let adapter = Adapter { down: shaped(&adapter.down, &down), up: shaped(&adapter.up, &up), ..adapter };
        self.taken.adapted.insert(name.to_owned(), adapter.handle());
        Some(Attached { adapter, switch: self.taken.switch.clone() })
    }

    /// What was taken.
    ///
    /// # Errors
    /// A tensor that could not be read. Else one error for all keys that are missing, mis-shaped or left over, and all adapters
    /// that belong to no layer.
    pub fn finish(self) -> Result<Parameters> {
        let Self {
            source,
            device,
            kind,
            trained: _,
            contiguous: _,
            adapters,
            taken,
            mut problems,
            failed,
            mut differs,
        } = self;
        if let Some(error) = failed {
            return Err(error);
        }
        let label = match source {
            Source::Random { .. } | Source::Shapes => "random weights".to_owned(),
            Source::Files { label, files: _, place } => {
                differs |= !place.is_empty();
                problems.extend(place.keys().map(|key| format!("`{key}` is unexpected")));
                label
            }
        };
        problems
            .extend(adapters.keys().map(|name| format!("an adapter is for `{name}`, which this model does not have")));
        if problems.is_empty() {
            return Ok(Parameters { device, kind, ..taken });
        }
        let shown = problems.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("; ");
        let more = problems.len().saturating_sub(5);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let error = format!("{label}: {} tensor(s) do not fit this architecture: {shown}{more}", problems.len());
        Err(match differs {
            true => Error::data(error).hint("are these the weights of another model than config.json describes?"),
            false => Error::data(error),
        })
    }
}

/// The same values of `[out, in, k, k]`, stored in the order `[out, k, k, in]`.
fn in_channels_last(kernel: &Tensor) -> Tensor {
    kernel.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Whether two shapes differ at most in ones at their ends.
fn same_shape(left: &[i64], right: &[i64]) -> bool {
    fn trimmed(mut shape: &[i64]) -> &[i64] {
        while let [rest @ .., 1] = shape {
            shape = rest;
        }
        shape
    }
    trimmed(left) == trimmed(right)
}

/// Why a tensor cannot be given.
enum Problem {
    /// It is not that of this architecture; the text has `{key}` for the key.
    Misfit(String),
    /// It cannot be read, whatever the architecture.
    Failed(Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Reads what `stored` names, in the kind of the file.
fn read(file: &TensorFile, stored: &Stored, shape: &[i64]) -> Result<Tensor, Problem> {
    let missing = || Problem::Misfit("`{key}` is missing".to_owned());
    let mut found: Vec<i64> =
        file.shapes().get(&stored.name).ok_or_else(missing)?.iter().map(|size| *size as i64).collect();
    let all_rows = found.first().copied().unwrap_or(1);
    let row = found.iter().skip(1).product::<i64>() as usize;
    if let Some(rows) = &stored.rows {
        found.iter_mut().take(1).for_each(|size| *size = rows.len() as i64);
    }
    let in_range = stored.rows.as_ref().is_none_or(|rows| rows.end as i64 <= all_rows);
    if !in_range || !same_shape(&found, shape) {
        return Err(Problem::Misfit(format!("`{{key}}` has shape {found:?}, want {shape:?}")));
    }
    let kind = match file.dtype(&stored.name)? {
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        _ => Kind::Float,
    };
    let elements = match &stored.rows {
        None => 0..found.iter().product::<i64>() as usize,
        Some(rows) => rows.start * row..rows.end * row,
    };
    // A piece at a time, so that the file's bytes never lie beside the whole tensor.
    let tensor = Tensor::empty(shape, (kind, Device::Cpu));
    let (flat, mut start) = (tensor.view(-1), 0);
    file.pieces(&stored.name, elements, |bytes| {
        let count = bytes.len().div_euclid(kind.elt_size_in_bytes()) as i64;
        let piece = Tensor::f_from_data_size(bytes, &[count], kind);
        let piece = piece.map_err(|error| Error::data(format!("{}: {error}", stored.name)))?;
        flat.narrow(0, start, count).copy_(&piece);
        start += count;
        Ok(())
    })?;
    Ok(tensor)
}

/// Uniform values, as PyTorch initialises layers.
fn random(seed: u64, key: &str, shape: &[i64]) -> Tensor {
    let deviation = match Initial::of(key, shape) {
        Initial::Constant(value) => return Tensor::full(shape, value, (Kind::Float, Device::Cpu)),
        Initial::Deviation(deviation) => deviation,
    };
    let mut stream = ChaCha8Rng::from_seed(*blake3::hash(format!("{seed}/{key}").as_bytes()).as_bytes());
    let count = shape.iter().product::<i64>() as usize;
    let mut bytes = vec![0; count * size_of::<i32>()];
    stream.fill_bytes(&mut bytes);
    // Integers of either sign, uniform; a uniform distribution on -w..w has deviation w / √3.
    let width = deviation * 3_f64.sqrt();
    let mut values = Tensor::from_data_size(&bytes, shape, Kind::Int).to_kind(Kind::Float);
    values.g_mul_scalar_(width * 2_f64.powi(-31))
}
