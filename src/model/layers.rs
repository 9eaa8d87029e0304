//! Loading the layers that all three networks are made of.

use crate::kernels::{Activate, LayerNorm, Linear, RmsNorm};
use crate::weights::{UploadError, Uploader};

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

/// `{name}.weight` `[out, in]` and `{name}.bias` `[out]`.
pub(super) async fn load_linear(
    uploader: &mut Uploader<'_>,
    name: &str,
    out_features: usize,
    in_features: usize,
) -> Result<Linear, UploadError> {
    load_stacked(uploader, &[name], out_features, in_features).await
}

/// Several projections of the same input, stacked by rows into one: `[names · out, in]`.
pub(super) async fn load_stacked(
    uploader: &mut Uploader<'_>,
    names: &[&str],
    out_features: usize,
    in_features: usize,
) -> Result<Linear, UploadError> {
    let weights: Vec<_> = names.iter().map(|name| format!("{name}.weight")).collect();
    let biases: Vec<_> = names.iter().map(|name| format!("{name}.bias")).collect();
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
    Ok(Linear {
        weight: uploader
            .matrices(&weights, &[out_features, in_features])
            .await?,
        bias: Some(uploader.vectors(&biases, &[out_features]).await?),
    })
}

/// `{name}.weight` and `{name}.bias`, both `[width]`.
pub(super) async fn load_layer_norm(
    uploader: &mut Uploader<'_>,
    name: &str,
    width: usize,
    eps: f32,
) -> Result<LayerNorm, UploadError> {
    Ok(LayerNorm {
        weight: uploader.vector(&format!("{name}.weight"), &[width]).await?,
        bias: uploader.vector(&format!("{name}.bias"), &[width]).await?,
        eps,
    })
}

/// Several projections of the same input without biases, stacked by rows into one: `[names · out, in]`.
pub(super) async fn load_unbiased(
    uploader: &mut Uploader<'_>,
    names: &[&str],
    out_features: usize,
    in_features: usize,
) -> Result<Linear, UploadError> {
    let weights: Vec<_> = names.iter().map(|name| format!("{name}.weight")).collect();
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    Ok(Linear {
        weight: uploader
            .matrices(&weights, &[out_features, in_features])
            .await?,
        bias: None,
    })
}

/// `{name}.weight` `[width]`.
pub(super) async fn load_rms_norm(
    uploader: &mut Uploader<'_>,
    name: &str,
    width: usize,
    eps: f32,
) -> Result<RmsNorm, UploadError> {
    Ok(RmsNorm {
        weight: uploader.vector(&format!("{name}.weight"), &[width]).await?,
        eps,
        factor: 1.0,
    })
}
