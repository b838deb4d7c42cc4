//! Fused multi-head attention (Vaswani et al., 2017, equation 1).

use tch::Tensor;

/// `queries`: `[B, T, C]`; `keys`, `values`: `[B, S, C]`; gives `[B, T, C]`. `causal`: a query sees keys up to its own place.
pub(crate) fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: i64, causal: bool) -> Tensor {
    // [B, T, C] to [B, heads, T, C / heads], a view.
    let split = |x: &Tensor| x.unflatten(-1, [heads, -1]).transpose(1, 2);
    let (queries, keys, values) = (split(queries), split(keys), split(values));
    Tensor::scaled_dot_product_attention(&queries, &keys, &values, None::<&Tensor>, 0.0, causal, None, false)
        .transpose(1, 2)
        .flatten(2, 3)
}
