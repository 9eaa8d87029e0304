//! Loading the layers that all three networks are made of.

use crate::kernels::{Activate, LayerNorm, Linear, RmsNorm};
use crate::weights::{Scope, WeightsError};

use super::config;

impl From<config::Activation> for Activate {
    fn from(activation: config::Activation) -> Self {
        match activation {
            config::Activation::GeluErf => Self::GeluErf,
            config::Activation::GeluTanh => Self::GeluTanh,
            config::Activation::Relu => Self::Relu,
        }
    }
}

/// The layer `name`: weight `[outputs, inputs]` and bias `[outputs]`.
pub(super) fn load_linear(
    scope: &Scope,
    name: &str,
    outputs: usize,
    inputs: usize,
) -> Result<Linear, WeightsError> {
    load_stacked(scope, &[name], outputs, inputs)
}

/// The layer `name` without a bias: weight `[outputs, inputs]`.
pub(super) fn load_unbiased(
    scope: &Scope,
    name: &str,
    outputs: usize,
    inputs: usize,
) -> Result<Linear, WeightsError> {
    load_stacked_unbiased(scope, &[name], outputs, inputs)
}

/// Several layers of the same input, stacked by rows into one: `[names · outputs, inputs]`.
pub(super) fn load_stacked(
    scope: &Scope,
    names: &[&str],
    outputs: usize,
    inputs: usize,
) -> Result<Linear, WeightsError> {
    let (weight, bias) = scope.layers(names, [outputs, inputs], true)?;
    Ok(Linear { weight, bias })
}

/// [`load_stacked`] of layers without biases.
pub(super) fn load_stacked_unbiased(
    scope: &Scope,
    names: &[&str],
    outputs: usize,
    inputs: usize,
) -> Result<Linear, WeightsError> {
    let (weight, bias) = scope.layers(names, [outputs, inputs], false)?;
    Ok(Linear { weight, bias })
}

/// The norm `name`: weight and bias, both `[width]`.
pub(super) fn load_layer_norm(
    scope: &Scope,
    name: &str,
    width: usize,
    eps: f32,
) -> Result<LayerNorm, WeightsError> {
    let scope = scope.pp(name);
    Ok(LayerNorm {
        weight: scope.vector("weight", &[width])?,
        bias: scope.vector("bias", &[width])?,
        eps,
    })
}

/// The norm `name`: weight `[width]`.
pub(super) fn load_rms_norm(
    scope: &Scope,
    name: &str,
    width: usize,
    eps: f32,
) -> Result<RmsNorm, WeightsError> {
    Ok(RmsNorm {
        weight: scope.pp(name).vector("weight", &[width])?,
        eps,
        factor: 1.0,
    })
}
