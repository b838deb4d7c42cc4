//! A prompt as the UNet takes it.

use tch::{Device, Kind, Tensor};

use crate::layer::Handle;

/// Prompts as the UNet takes them, one a row. All that a model wants to know of a prompt is in here. So nothing between text
/// encoder and UNet has to know which model it is.
#[derive(Debug)]
pub struct Conditioning {
    /// Hidden states of the text encoders, `[B, T, width]`.
    pub hidden: Tensor,
}

impl From<Tensor> for Conditioning {
    fn from(hidden: Tensor) -> Self {
        Self { hidden }
    }
}

impl Handle for Conditioning {
    fn handle(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }
}

impl Conditioning {
    /// Rows, B.
    pub fn len(&self) -> i64 {
        self.hidden.size().first().copied().unwrap_or(0)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.hidden.device()
    }

    /// The rows of several, one after the other.
    pub fn cat(parts: &[Self]) -> Self {
        Self { hidden: Tensor::cat(&parts.iter().map(|part| &part.hidden).collect::<Vec<_>>(), 0) }
    }

    /// The rows behind those of `negative`, which is one row for all or as many. They are the input of one call for both branches
    /// of classifier-free guidance.
    pub fn behind(&self, negative: &Self) -> Self {
        Self::cat(&[negative.repeated(self.len()), self.handle()])
    }

    /// One row `count` times; as many rows stay as they are.
    pub fn repeated(&self, count: i64) -> Self {
        self.map(|tensor| {
            let mut size = tensor.size();
            size[0] = count;
            tensor.expand(size, false)
        })
    }

    /// Rows `rows` in this order.
    pub fn select(&self, rows: &[i64]) -> Self {
        let rows = Tensor::from_slice(rows).to_device(self.device());
        self.map(|tensor| tensor.index_select(0, &rows))
    }

    /// The same on `device` in `kind`.
    pub fn to(&self, device: Device, kind: Kind) -> Self {
        self.map(|tensor| tensor.to_kind(kind).to_device(device))
    }

    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { hidden: change(&self.hidden) }
    }
}
