//! The layers that all three models are made of, as handles on tensors. Compute is in the kind of the input, each weight is cast
//! to it, and norms are in fp32. A layer may carry a low-rank update (LoRA, Hu et al., 2021, equation 3).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tch::{Device, Kind, Tensor};

/// Another owner of the same tensors, for a graph node that outlives a call (gradient checkpointing).
pub trait Handle {
    /// Shares every tensor; copies none.
    fn handle(&self) -> Self;
}

impl Handle for Tensor {
    fn handle(&self) -> Self {
        self.shallow_clone()
    }
}

impl<T: Handle> Handle for Option<T> {
    fn handle(&self) -> Self {
        self.as_ref().map(T::handle)
    }
}

impl<T: Handle> Handle for Vec<T> {
    fn handle(&self) -> Self {
        self.iter().map(T::handle).collect()
    }
}

/// Whether the adapters of a model take part: one switch that all its layers share. On at first.
#[derive(Debug, Clone)]
pub struct AdapterSwitch(Arc<AtomicBool>);

impl AdapterSwitch {
    /// Switches all adapters of the model; without them its layers compute as if none were attached.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Whether adapters take part.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for AdapterSwitch {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

/// Switches adapters off until it is dropped, also by a panic; then they are as they were.
pub(crate) struct SwitchedOff<'a> {
    switch: &'a AdapterSwitch,
    before: bool,
}

impl<'a> SwitchedOff<'a> {
    pub(crate) fn new(switch: &'a AdapterSwitch) -> Self {
        let before = switch.is_on();
        switch.set(false);
        Self { switch, before }
    }
}

impl Drop for SwitchedOff<'_> {
    fn drop(&mut self) {
        self.switch.set(self.before);
    }
}

/// A low-rank update of one layer: `W + scale · up · down`.
#[derive(Debug)]
pub struct Adapter {
    /// `[r, in]`, or `[r, in, k, k]` of a convolution, a 1×1 one too; fp32.
    pub down: Tensor,
    /// `[out, r]`, or `[out, r, 1, 1]` of a convolution; fp32.
    pub up: Tensor,
    /// `alpha / r`, times what the user asked for.
    pub scale: f64,
}

impl Handle for Adapter {
    fn handle(&self) -> Self {
        Self { down: self.down.handle(), up: self.up.handle(), scale: self.scale }
    }
}

impl Adapter {
    /// The same adapter on `device`; a leaf that trains stays one.
    pub(crate) fn to(&self, device: Device) -> Self {
        let moved = |tensor: &Tensor| {
            if tensor.device() == device {
                return tensor.shallow_clone();
            }
            tensor.detach().to_device(device).set_requires_grad(tensor.requires_grad())
        };
        Self { down: moved(&self.down), up: moved(&self.up), scale: self.scale }
    }
}

/// An adapter in its layer.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) adapter: Adapter,
    pub(crate) switch: AdapterSwitch,
}

impl Handle for Attached {
    fn handle(&self) -> Self {
        Self { adapter: self.adapter.handle(), switch: self.switch.clone() }
    }
}

/// The adapter of a layer while it is switched on.
fn active(attached: &Option<Attached>) -> Option<&Adapter> {
    attached.as_ref().filter(|attached| attached.switch.is_on()).map(|attached| &attached.adapter)
}

/// A weight `[out, in]`, or `[out, in, 1, 1]` as it is on pixels, as the matrix that it is.
fn as_matrix(weight: &Tensor) -> Tensor {
    if weight.dim() > 2 { weight.flatten(1, -1) } else { weight.shallow_clone() }
}

/// `y = x Wᵀ + b`, plus the adapter's update. `W` may be the kernel of a 1×1 convolution.
#[derive(Debug)]
pub struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) attached: Option<Attached>,
}

impl Handle for Linear {
    fn handle(&self) -> Self {
        Self { weight: self.weight.handle(), bias: self.bias.handle(), attached: self.attached.handle() }
    }
}

impl Linear {
    /// `x`: `[.., in]`; gives `[.., out]` in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let weight = as_matrix(&self.weight).to_kind(kind);
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        let Some(Adapter { down, up, scale }) = active(&self.attached) else { return x.linear(&weight, bias) };
        let up = if *scale == 1.0 { as_matrix(up) } else { as_matrix(up) * *scale };
        let (down, up) = (as_matrix(down).to_kind(kind), up.to_kind(kind));
        let (rows, shape) = (x.flatten(0, -2), [&x.size()[..x.dim() - 1], &[-1]].concat());
        let inner = rows.linear(&down, None::<&Tensor>);
        if kind == Kind::Float {
            // The second product adds: passes over the output are most of what a small rank costs. Callers add to the result
            // in place, which in a view that autograd knows of takes copies.
            return rows.linear(&weight, bias).addmm_(&inner, &up.transpose(0, 1)).internal_unsafe_view(&shape[..]);
        }
        // Added where the product is still in fp32: a small update of what was rounded to bf16 already would round away.
        let mut update = inner.linear(&up, None::<&Tensor>);
        let y = update.addmm_(&rows, &weight.transpose(0, 1)).view(&shape[..]);
        match bias {
            Some(bias) => y + bias,
            None => y,
        }
    }
}

/// A convolution with a square kernel, plus the adapter's update.
#[derive(Debug)]
pub struct Conv2d {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) stride: i64,
    pub(crate) padding: i64,
    pub(crate) attached: Option<Attached>,
}

impl Handle for Conv2d {
    fn handle(&self) -> Self {
        Self {
            weight: self.weight.handle(),
            bias: self.bias.handle(),
            attached: self.attached.handle(),
            stride: self.stride,
            padding: self.padding,
        }
    }
}

impl Conv2d {
    /// `x`: `[B, in, H, W]`; gives `[B, out, H', W']` in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        if kind != Kind::Float && active(&self.attached).is_some() {
            // As in a linear layer: rounded to bf16 first, a small update would be lost.
            return self.forward(&x.to_kind(Kind::Float)).to_kind(kind);
        }
        let convolve = |weight: &Tensor, bias: Option<&Tensor>| {
            let (weight, bias) = (weight.to_kind(kind), bias.map(|bias| bias.to_kind(kind)));
            if self.is_small(x) {
                return self.as_product(x, &weight, bias.as_ref());
            }
            x.conv2d(&weight, bias, [self.stride; 2], [self.padding; 2], [1, 1], 1)
        };
        let y = convolve(&self.weight, self.bias.as_ref());
        let Some(Adapter { down, up, scale }) = active(&self.attached) else { return y };
        let update = convolve(down, None).conv2d(&up.to_kind(kind), None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1);
        y + update * *scale
    }
}

impl Conv2d {
    /// Whether there are so few pixels that bringing the kernel into oneDNN's own order would take most of the time.
    fn is_small(&self, x: &Tensor) -> bool {
        const PIXELS: i64 = 64;
        let size = x.size();
        let pixels = size[0] * size[2] * size[3];
        x.device() == Device::Cpu && self.weight.size()[2] > 1 && pixels <= PIXELS * self.stride * self.stride
    }

    /// The convolution as one matrix product: a row for each output pixel, of what the kernel sees there.
    fn as_product(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let (kernel, padding) = (weight.size()[2], self.padding);
        let padded = x.permute([0, 2, 3, 1]).constant_pad_nd([0, 0, padding, padding, padding, padding]);
        // [B, H', W', in, k, k], a view; then rows in the order that kernels are stored in.
        let seen = padded.unfold(1, kernel, self.stride).unfold(2, kernel, self.stride);
        let rows = seen.permute([0, 1, 2, 4, 5, 3]).flatten(3, 5);
        rows.linear(&weight.permute([0, 2, 3, 1]).flatten(1, 3), bias).permute([0, 3, 1, 2])
    }
}

/// What a norm is handed: fp32 on a CPU; on CUDA the kind of `x`, as its kernels compute in fp32 inside.
fn norm_kind(x: &Tensor) -> Kind {
    if x.device().is_cuda() { x.kind() } else { Kind::Float }
}

/// GroupNorm, computed in fp32 whatever the kind of its input.
#[derive(Debug)]
pub struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: i64,
    pub(crate) eps: f64,
    /// Whether its input is brought into contiguous order first.
    pub(crate) contiguous: bool,
}

impl Handle for GroupNorm {
    fn handle(&self) -> Self {
        Self { weight: self.weight.handle(), bias: self.bias.handle(), ..*self }
    }
}

impl GroupNorm {
    fn normed(&self, x: &Tensor) -> Tensor {
        let kind = norm_kind(x);
        let (weight, bias) = (self.weight.to_kind(kind), self.bias.to_kind(kind));
        let x = if self.contiguous { x.contiguous() } else { x.shallow_clone() };
        x.to_kind(kind).group_norm(self.groups, Some(&weight), Some(&bias), self.eps, true)
    }

    /// `x`: `[B, C, ..]`; gives the same shape and kind.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.normed(x).to_kind(x.kind())
    }

    /// The norm and then SiLU: `[B, C, ..]` to the same shape and kind.
    pub fn forward_silu(&self, x: &Tensor) -> Tensor {
        let mut normed = self.normed(x);
        let activated = if normed.requires_grad() { normed.silu() } else { normed.silu_() };
        activated.to_kind(x.kind())
    }
}

/// LayerNorm over the last dimension, computed in fp32 whatever the kind of its input.
#[derive(Debug)]
pub struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl Handle for LayerNorm {
    fn handle(&self) -> Self {
        Self { weight: self.weight.handle(), bias: self.bias.handle(), eps: self.eps }
    }
}

impl LayerNorm {
    /// `x`: `[.., width]`; gives the same shape and kind.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = norm_kind(x);
        let (weight, bias) = (self.weight.to_kind(kind), self.bias.to_kind(kind));
        x.to_kind(kind).layer_norm(self.weight.size(), Some(&weight), Some(&bias), self.eps, false).to_kind(x.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Stream, normal};

    #[test]
    fn what_was_switched_off_stays_off_inside() {
        let switch = AdapterSwitch::default();
        {
            let _outer = SwitchedOff::new(&switch);
            drop(SwitchedOff::new(&switch));
            assert!(!switch.is_on());
        }
        assert!(switch.is_on());
    }

    /// Against x Wᵀ + b + s · (x Aᵀ) Bᵀ and its gradients, written out. The output is then changed in place, as callers do.
    #[test]
    fn an_update_is_added_with_its_gradients() {
        let leaf = |seed: u64, size: &[i64]| normal(seed, Stream::Noise, size).set_requires_grad(true);
        let (weight, bias) = (normal(1, Stream::Noise, &[6, 5]), normal(2, Stream::Noise, &[6]));
        let run = |written_out: bool| {
            let (x, down, up) = (leaf(3, &[2, 4, 5]), leaf(4, &[3, 5]), leaf(5, &[6, 3]));
            let adapter = Adapter { down: down.shallow_clone(), up: up.shallow_clone(), scale: 0.5 };
            let attached = Some(Attached { adapter, switch: AdapterSwitch::default() });
            let layer = Linear { weight: weight.shallow_clone(), bias: Some(bias.shallow_clone()), attached };
            let mut y = match written_out {
                true => x.matmul(&weight.tr()) + &bias + x.matmul(&down.tr()).matmul(&up.tr()) * 0.5,
                false => layer.forward(&x),
            };
            let y = y.g_add_(&x.narrow(2, 0, 1));
            (&y * normal(6, Stream::Noise, &[2, 4, 6])).sum(Kind::Float).backward();
            [y.detach(), x.grad(), down.grad(), up.grad()]
        };
        for (found, wanted) in run(false).iter().zip(&run(true)) {
            assert!(found.size() == wanted.size() && found.allclose(wanted, 1e-5, 1e-5, false));
        }
    }

    /// An update of 1e-4 of the weights, a twentieth of what bf16 resolves, is there in full on the average over outputs.
    #[test]
    fn a_small_update_is_not_rounded_away_in_bf16() {
        let (x, weight) = (normal(1, Stream::Noise, &[2, 256, 128]), normal(2, Stream::Noise, &[128, 128]) * 0.1);
        let adapter = || Adapter {
            down: normal(3, Stream::Noise, &[4, 128]),
            up: normal(4, Stream::Noise, &[128, 4]),
            scale: 5e-6,
        };
        let output = |on: bool, kind: Kind| {
            let switch = AdapterSwitch::default();
            switch.set(on);
            let attached = Some(Attached { adapter: adapter(), switch });
            let bias = Some(normal(5, Stream::Noise, &[128]).to_kind(kind));
            let layer = Linear { weight: weight.to_kind(kind), bias, attached };
            layer.forward(&x.to_kind(kind)).to_kind(Kind::Double)
        };
        let moved = |kind: Kind| output(true, kind) - output(false, kind);
        let (wanted, found) = (moved(Kind::Float), moved(Kind::BFloat16));
        let share = (&found * &wanted).sum(Kind::Double) / wanted.square().sum(Kind::Double);
        assert!((share.double_value(&[]) - 1.0).abs() < 0.3, "{}", share.double_value(&[]));
        let conv = |on: bool, kind: Kind| {
            let switch = AdapterSwitch::default();
            switch.set(on);
            let adapter = Adapter {
                down: normal(6, Stream::Noise, &[4, 16, 3, 3]),
                up: normal(7, Stream::Noise, &[16, 4, 1, 1]),
                scale: 5e-6,
            };
            let attached = Some(Attached { adapter, switch });
            let weight = normal(8, Stream::Noise, &[16, 16, 3, 3]).to_kind(kind);
            let layer = Conv2d { weight, bias: None, stride: 1, padding: 1, attached };
            layer.forward(&normal(9, Stream::Noise, &[2, 16, 32, 32]).to_kind(kind)).to_kind(Kind::Double)
        };
        let moved = |kind: Kind| conv(true, kind) - conv(false, kind);
        let (wanted_by_conv, found) = (moved(Kind::Float), moved(Kind::BFloat16));
        let share = (&found * &wanted_by_conv).sum(Kind::Double) / wanted_by_conv.square().sum(Kind::Double);
        assert!((share.double_value(&[]) - 1.0).abs() < 0.7, "{}", share.double_value(&[]));
        let relative = wanted.norm().double_value(&[]) / output(false, Kind::Float).norm().double_value(&[]);
        assert!((5e-5..2e-4).contains(&relative), "{relative}");
    }
}
