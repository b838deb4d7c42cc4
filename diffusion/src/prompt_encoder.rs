//! From prompts to conditioning: the one place where tokenizers and text encoders run.

use std::collections::{BTreeMap, HashMap};

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    conditioning::Conditioning,
    layer::{Adapter, Handle, SwitchedOff},
    source::Source,
    text::TextEncoder,
    tokenizer::Tokenizer,
};

/// The text encoders of a model, each with its tokenizer: one in Stable Diffusion 1.x and 2.x.
pub struct PromptEncoder {
    encoders: Vec<(Tokenizer, TextEncoder)>,
    device: Device,
}

impl PromptEncoder {
    /// Reads the encoders of `source`, the first with `adapters`. `wanted_width`: of the hidden states that the UNet reads.
    ///
    /// # Errors
    /// A file that cannot be read or does not fit, or hidden states of another width.
    pub fn load(
        source: &Source,
        adapters: BTreeMap<String, Adapter>,
        wanted_width: i64,
        (device, kind): (Device, Kind),
    ) -> Result<Self> {
        let (config, weights) = source.text_encoder()?;
        if config.hidden_size != wanted_width {
            let (model, width) = (source.model(), config.hidden_size);
            return Err(Error::data(format!(
                "{model}: the text encoder is {width} wide, the UNet wants {wanted_width}"
            ))
            .hint("are its parts of different models?"));
        }
        let encoder = TextEncoder::new(&config, weights.to(device, kind).adapters(adapters))?;
        Ok(Self { encoders: vec![(source.tokenizer()?, encoder)], device })
    }

    /// The prompts, one a row, in fp32 on the device: the hidden states of all encoders are side by side.
    ///
    /// # Errors
    /// A tokenizer fails.
    pub fn encode(&self, prompts: &[&str]) -> Result<Conditioning> {
        let one = |(tokenizer, encoder): &(Tokenizer, TextEncoder)| -> Result<Tensor> {
            let mut ids = Vec::new();
            for prompt in prompts {
                ids.extend(tokenizer.encode(prompt)?.ids);
            }
            let ids = Tensor::from_slice(&ids).view([prompts.len() as i64, -1]).to_device(self.device);
            Ok(tch::no_grad(|| encoder.forward(&ids)))
        };
        let mut hidden = self.encoders.iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(Conditioning { hidden: if hidden.len() == 1 { hidden.remove(0) } else { Tensor::cat(&hidden, -1) } })
    }

    /// The prompts as [`Self::encode`] would give them without adapters.
    ///
    /// # Errors
    /// A tokenizer fails.
    pub fn encode_as_base(&self, prompts: &[&str]) -> Result<Conditioning> {
        let _off: Vec<SwitchedOff> =
            self.encoders.iter().map(|(_, encoder)| SwitchedOff::new(&encoder.parameters.switch)).collect();
        self.encode(prompts)
    }
}

/// Prompts encoded at a time.
const ENCODED: usize = 32;

/// Every prompt of a run, encoded.
pub struct Embeddings {
    rows: HashMap<String, i64>,
    /// On the CPU, in the kind that the UNet computes in.
    all: Conditioning,
    device: Device,
}

impl Embeddings {
    /// Encodes each distinct prompt once; the text encoder is gone afterwards.
    ///
    /// # Errors
    /// The text encoder cannot be read, or is of another width than the UNet wants.
    pub fn new<'a>(
        source: &Source,
        prompts: impl IntoIterator<Item = &'a str>,
        adapters: &BTreeMap<String, Adapter>,
        wanted_width: i64,
        (device, kind): (Device, Kind),
    ) -> Result<Self> {
        let adapters = adapters.iter().map(|(layer, adapter)| (layer.clone(), adapter.handle()));
        let encoder = PromptEncoder::load(source, adapters.collect(), wanted_width, (device, kind))?;
        let mut rows = HashMap::new();
        let mut distinct = Vec::new();
        for prompt in prompts {
            if !rows.contains_key(prompt) {
                rows.insert(prompt.to_owned(), rows.len() as i64);
                distinct.push(prompt);
            }
        }
        let encode = |prompts: &[&str]| Ok(encoder.encode(prompts)?.to(Device::Cpu, kind));
        let all = distinct.chunks(ENCODED).map(encode).collect::<Result<Vec<_>>>()?;
        Ok(Self { rows, all: Conditioning::cat(&all), device })
    }

    /// Prompts that were encoded, on the device.
    pub fn of(&self, prompts: &[String]) -> Conditioning {
        let rows: Vec<i64> = prompts.iter().filter_map(|prompt| self.rows.get(prompt).copied()).collect();
        debug_assert_eq!(rows.len(), prompts.len());
        self.all.select(&rows).to(self.device, self.all.hidden.kind())
    }
}
