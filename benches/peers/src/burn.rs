//! burn's side: `Tensor::matmul` on its wgpu backend, as a program that depends on burn gets it.

use burn_tensor::wgpu::wgpu;
use burn_tensor::{DType, Device, DeviceKind, FloatDType, Tensor, TensorData};
use half::f16;

use crate::Failure;
use crate::problem::Problem;

/// burn's version, as this crate's lock file has it.
pub const VERSION: &str = env!("BURN_VERSION");

/// The order in which burn gets the weights.
#[derive(Clone, Copy)]
pub enum Order {
    /// `[in, out]`: what `burn::nn::Linear` keeps.
    InOut,
    /// `[out, in]`, as in checkpoints, transposed by a view.
    OutIn,
}

impl Order {
    pub fn name(self) -> &'static str {
        match self {
            Self::InOut => "[in, out]",
            Self::OutIn => "[out, in]ᵀ",
        }
    }
}

/// burn's device on the adapter that ours runs on.
pub struct Peer {
    device: Device,
    spirv: bool,
}

impl Peer {
    /// Opens the adapter that `info` describes.
    pub fn open(info: &wgpu::AdapterInfo) -> Result<Self, Failure> {
        let kind = match info.device_type {
            wgpu::DeviceType::Cpu => DeviceKind::Cpu,
            wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(0),
            wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(0),
            wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu(0),
            wgpu::DeviceType::Other => DeviceKind::DefaultDevice,
        };
        let (device, setup) = Device::wgpu_options().device_kind(kind).init_with_setup()?;
        let theirs = setup.adapter.get_info();
        if (&theirs.name, theirs.backend) != (&info.name, info.backend) {
            return Err(format!(
                "ours runs on {} ({}), burn would on {} ({}): choose another with BLIP2_WGPU_ADAPTER",
                info.name, info.backend, theirs.name, theirs.backend
            )
            .into());
        }
        // What burn enables with its SPIR-V compiler: buffers addressed by pointers, which its WGSL has no use for.
        let spirv = cfg!(feature = "spirv");
        Ok(Self { device, spirv })
    }

    /// How it was built.
    pub fn describe(&self) -> &'static str {
        if self.spirv {
            "SPIR-V, autotune, no fusion"
        } else {
            "WGSL, autotune, no fusion"
        }
    }

    /// Whether burn computes in f16 here.
    pub fn has_f16(&self) -> bool {
        self.device.supports_dtype(FloatDType::F16)
    }

    /// The product's tensors on the device.
    pub fn product(&self, problem: &Problem, f16: bool, order: Order) -> Product {
        let Problem {
            rows,
            out_features,
            in_features,
            x,
            w,
        } = problem;
        let w = match order {
            Order::OutIn => self
                .tensor(w, [*out_features, *in_features], f16)
                .transpose(),
            Order::InOut => {
                let mut turned = Vec::with_capacity(w.len());
                for column in 0..*in_features {
                    turned.extend(w.iter().skip(column).step_by(*in_features));
                }
                self.tensor(&turned, [*in_features, *out_features], f16)
            }
        };
        let x = self.tensor(x, [*rows, *in_features], f16);
        Product {
            device: self.device.clone(),
            x,
            w,
        }
    }

    fn tensor(&self, values: &[f16], shape: [usize; 2], f16: bool) -> Tensor<2> {
        if f16 {
            Tensor::from_data(
                TensorData::new(values.to_vec(), shape),
                (&self.device, DType::F16),
            )
        } else {
            let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
        }
    }
}

/// A product's operands.
pub struct Product {
    device: Device,
    x: Tensor<2>,
    w: Tensor<2>,
}

impl Product {
    /// Computes the product `replays` times and waits.
    pub fn run(&self, replays: usize) -> Result<(), Failure> {
        for _ in 0..replays {
            let _ = self.x.clone().matmul(self.w.clone());
        }
        self.device
            .sync()
            .map_err(|error| format!("burn: {error:?}").into())
    }

    pub fn result(&self) -> Result<Vec<f32>, Failure> {
        let data = self
            .x
            .clone()
            .matmul(self.w.clone())
            .into_data_dtype(DType::F32);
        data.try_to_vec::<f32>()
            .map_err(|error| format!("burn: {error:?}").into())
    }
}
