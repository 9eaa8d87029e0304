//! Opening a device, what it can do, and the errors it reports.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::adapter;
use super::pipeline::{PipelineStore, cache_file_name};
use super::poll::{Loss, Poller};
use super::profile::{Phase, Profiler};
use super::rehearsal::Rehearsal;
use super::timestamps::{self, Timestamps};
use super::tuning_cache::TuningCache;
use super::{Disabled, GpuError, GpuOptions, Kernel, KernelChoice};

/// What a device (or adapter) can do for our kernels.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// 16-bit floats in shaders. Without them f16 weights are unpacked from `u32`.
    pub f16: bool,
    /// Subgroup operations, with the least and greatest lanes a subgroup.
    pub subgroups: Option<(u32, u32)>,
    /// Cooperative-matrix shapes the adapter lists.
    pub cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// Timestamps within a pass.
    pub timestamps: bool,
    /// Compiled pipelines can be kept on disk.
    pub pipeline_cache: bool,
    /// Largest storage binding, bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, bytes.
    pub workgroup_bytes: u32,
    /// Invocations a workgroup.
    pub invocations: u32,
}

impl Capabilities {
    /// What is left of it under `disabled`.
    #[must_use]
    pub fn without(mut self, disabled: Disabled) -> Self {
        self.f16 &= !disabled.f16;
        if disabled.subgroups {
            self.subgroups = None;
        }
        if self.cooperative_size().is_none() {
            self.cooperative_matrices.clear();
        }
        if disabled.limits {
            let least = wgpu::Limits::default();
            self.max_binding_bytes = least.max_storage_buffer_binding_size;
            self.max_buffer_bytes = least.max_buffer_size;
            self.workgroup_bytes = least.max_compute_workgroup_storage_size;
            self.invocations = least.max_compute_invocations_per_workgroup;
        }
        self
    }

    /// What `adapter` offers.
    pub(super) fn of_adapter(adapter: &wgpu::Adapter) -> Self {
        let mut capabilities = Self::of(adapter.features(), &adapter.limits(), &adapter.get_info());
        capabilities.cooperative_matrices = adapter.cooperative_matrix_properties();
        capabilities
    }

    fn of(features: wgpu::Features, limits: &wgpu::Limits, info: &wgpu::AdapterInfo) -> Self {
        Self {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features
                .contains(wgpu::Features::SUBGROUP)
                .then(|| subgroup_lanes(info)),
            cooperative_matrices: Vec::new(),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// Rows and columns of the fragments that `matmul_cooperative` would use: square, f16 products, f32 sums.
    #[must_use]
    pub fn cooperative_size(&self) -> Option<u32> {
        use wgpu::CooperativeScalarType::{F16, F32};
        let fits = |size: &u32| {
            self.cooperative_matrices.iter().any(|shape| {
                [shape.m_size, shape.n_size, shape.k_size] == [*size; 3]
                    && shape.ab_type == F16
                    && shape.cr_type == F32
            })
        };
        [16, 8]
            .into_iter()
            .find(fits)
            .filter(|_| self.f16 && self.subgroups.is_some())
    }

    /// Lanes a subgroup where every subgroup has the same number: what kernels with fixed lane tiles need.
    #[must_use]
    pub fn fixed_subgroup_size(&self) -> Option<u32> {
        self.subgroups
            .filter(|(least, greatest)| least == greatest)
            .map(|(size, _)| size)
    }
}

/// An open device. Cheap to clone; all clones are the same device.
#[derive(Debug, Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    /// Where nothing is made, only counted.
    rehearsal: Option<Arc<Rehearsal>>,
}

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    capabilities: Capabilities,
    /// [`GpuOptions::max_part_bytes`]
    max_part_bytes: Option<u64>,
    /// The first error wgpu reported outside any call of ours, until someone asks for it.
    failure: Arc<Mutex<Option<GpuError>>>,
    /// Buffers that are still made; then the device has no room: see [`Gpu::run_out_of_memory_after`].
    #[cfg(test)]
    buffers_left: std::sync::atomic::AtomicI64,
    loss: Loss,
    poller: Poller,
    pipelines: PipelineStore,
    tuning_cache: TuningCache,
    kernel_choices: Vec<KernelChoice>,
    /// What the layer above keeps for each device.
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
    checked: bool,
    profiler: Option<Profiler>,
    timestamps: OnceLock<Arc<Timestamps>>,
    /// Buffers and bind groups made so far.
    objects: AtomicUsize,
}

impl Gpu {
    /// Opens the adapter that `options` choose.
    ///
    /// # Errors
    /// No adapter, none that matches, or a driver that gives no device.
    pub async fn open(options: &GpuOptions) -> Result<Self, GpuError> {
        if let Some(folder) = options.shaders.as_ref().filter(|it| !it.is_dir()) {
            return Err(GpuError::Shader {
                place: folder.display().to_string(),
                problem: "there is no such folder to read shaders from".into(),
            });
        }
        let instance = adapter::instance();
        let adapter = adapter::choose(adapter::all_adapters(&instance).await?, &options.adapter)?;
        let info = adapter.get_info();
        let no_device = |reason: String| GpuError::NoDevice {
            adapter: info.name.clone(),
            reason,
        };
        let profiled = match &options.profiler {
            Some(_) => timestamps::features(&adapter)?,
            None => wgpu::Features::empty(),
        };
        let mut capabilities = Capabilities::of_adapter(&adapter).without(options.disabled);
        capabilities.max_binding_bytes = capabilities
            .max_binding_bytes
            .min(options.max_binding_bytes.unwrap_or(u64::MAX));
        let required_features =
            wanted_features(options.disabled, &capabilities, &info) & adapter.features() | profiled;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("blip2-wgpu"),
                required_features,
                experimental_features: experimental_features(required_features),
                required_limits: if options.disabled.limits {
                    wgpu::Limits::default()
                } else {
                    adapter.limits()
                },
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..Default::default()
            })
            .await
            .map_err(|error| no_device(one_line(&error)))?;

        let failure = Arc::new(Mutex::new(None));
        let loss = Loss::new();
        report_errors_into(&failure, &loss, &device, &info);
        let poller = Poller::new(device.clone(), loss.clone());
        let poller = poller.map_err(|error| no_device(one_line(&error)))?;
        let pipelines = PipelineStore::new(&device, &info, options);
        let cache_file = options.cache_dir.as_ref();
        let cache_file = cache_file.map(|dir| dir.join(cache_file_name(&info, "json")));
        let gpu = Self {
            inner: Arc::new(Inner {
                device,
                queue,
                info,
                capabilities,
                max_part_bytes: options.max_part_bytes,
                failure,
                #[cfg(test)]
                buffers_left: i64::MAX.into(),
                loss,
                poller,
                pipelines,
                tuning_cache: TuningCache::new(cache_file),
                kernel_choices: options.kernels.clone(),
                attached: OnceLock::new(),
                checked: options.checked,
                profiler: options.profiler.clone(),
                timestamps: OnceLock::new(),
                objects: AtomicUsize::new(0),
            }),
            rehearsal: None,
        };
        if let Some(profiler) = &options.profiler {
            let timestamps = Timestamps::new(&gpu, profiler).await?;
            gpu.inner.timestamps.get_or_init(|| Arc::new(timestamps));
        }
        Ok(gpu)
    }

    /// What collects the time of dispatches and phases, if a profile is taken.
    #[must_use]
    pub fn profiler(&self) -> Option<&Profiler> {
        self.inner.profiler.as_ref()
    }

    /// Notes that the host does `name` until the result is dropped, if a profile is taken.
    pub fn phase(&self, name: &'static str) -> Phase {
        self.profiler()
            .map_or_else(Phase::default, |profiler| profiler.phase(name))
    }

    /// What times the dispatches, if a profile is taken.
    pub(super) fn timestamps(&self) -> Option<&Arc<Timestamps>> {
        self.inner.timestamps.get()
    }

    pub(super) fn rehearsing(&self, rehearsal: Arc<Rehearsal>) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            rehearsal: Some(rehearsal),
        }
    }

    pub(super) fn rehearsed(&self) -> Option<&Rehearsal> {
        self.rehearsal.as_deref()
    }

    /// Name, backend and driver of the adapter.
    #[must_use]
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.inner.info
    }

    /// What the device can do, after [`GpuOptions::disabled`].
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Largest buffer for a part of a weight matrix, bytes.
    pub(super) fn max_part_bytes(&self) -> u64 {
        let capabilities = self.capabilities();
        capabilities
            .max_binding_bytes
            .min(capabilities.max_buffer_bytes)
            .min(self.inner.max_part_bytes.unwrap_or(u64::MAX))
    }

    /// Whether the host may write into storage buffers itself ([`Gpu::mapped_storage`]), without staging: where the device
    /// is the CPU.
    #[must_use]
    pub fn shares_memory(&self) -> bool {
        let features = self.inner.device.features();
        features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
    }

    /// Buffers and bind groups made on this device so far: constant while recorded programs replay.
    #[must_use]
    pub fn objects_made(&self) -> usize {
        self.inner.objects.load(Ordering::Relaxed)
    }

    pub(super) fn count_objects(&self, count: usize) {
        self.inner.objects.fetch_add(count, Ordering::Relaxed);
    }

    /// wgpu's device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// wgpu's queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    pub(super) fn pipelines(&self) -> &PipelineStore {
        &self.inner.pipelines
    }

    /// Where findings about the kernels on this device are kept.
    pub(crate) fn tuning_cache(&self) -> &TuningCache {
        &self.inner.tuning_cache
    }

    /// [`GpuOptions::kernels`]
    pub(crate) fn kernel_choices(&self) -> &[KernelChoice] {
        &self.inner.kernel_choices
    }

    /// What the layer above keeps for this device, made when it is first asked for. There is one such thing: all callers want
    /// the same type.
    pub(crate) fn attached<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> &T {
        let attached = self.inner.attached.get_or_init(|| Box::new(make()));
        attached.downcast_ref().expect("one type for all callers")
    }

    /// A hash of the texts of `kernels`: what is found out about some texts does not hold for others.
    pub(crate) fn text_hash(&self, kernels: &[&Kernel]) -> u64 {
        let mut hasher = DefaultHasher::new();
        for kernel in kernels {
            self.inner.pipelines.text_hash(kernel).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Whether shaders check bounds: [`GpuOptions::checked`].
    #[must_use]
    pub fn is_checked(&self) -> bool {
        self.inner.checked
    }

    /// The folder that shaders are read from in the place of this program's own: [`GpuOptions::shaders`].
    pub fn shader_folder(&self) -> Option<&Path> {
        self.inner.pipelines.shader_folder()
    }

    /// Writes compiled pipelines to the cache folder, if there is one and something is new.
    pub fn save_pipelines(&self) {
        self.inner.pipelines.save();
    }

    /// Submits `commands` and has their callbacks driven.
    pub fn submit(&self, commands: impl IntoIterator<Item = wgpu::CommandBuffer>) {
        let submission = self.inner.queue.submit(commands);
        self.inner.poller.watch(submission);
    }

    /// Resolves when everything submitted so far is done.
    ///
    /// # Errors
    /// Any error the device reported meanwhile.
    pub async fn finish(&self, doing: &str) -> Result<(), GpuError> {
        self.inner.pipelines.settle().await?;
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.inner.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.submit([]);
        // Without an answer the device is gone: `check` then has the reason.
        let _ = self.unless_lost(receiver).await;
        self.check(doing)
    }

    /// Waits until the driver has judged every kernel that was compiled: what it refused is an error of the programs that
    /// have it when they are finished.
    pub async fn judge_kernels(&self) {
        let _ = self.inner.pipelines.settle().await; // each refusal is kept for its program
    }

    /// What a callback of wgpu's sends; `None` if it never will, because the device is gone.
    pub(super) async fn unless_lost<T>(
        &self,
        callback: futures_channel::oneshot::Receiver<T>,
    ) -> Option<T> {
        self.inner.loss.or(callback).await
    }

    /// Waits until a device that is gone has said so: its failed mappings are told of before its loss is, perhaps on
    /// another thread.
    pub(super) async fn settle(&self) {
        let _ = self.inner.device.poll(wgpu::PollType::Poll);
        self.inner.poller.settle().await;
    }

    /// The first error the device reported since the last check, as an error of ours. A device that is gone stays so.
    ///
    /// # Errors
    /// That error; `doing` says what the program was about.
    pub fn check(&self, doing: &str) -> Result<(), GpuError> {
        match self.take_failure()? {
            None => Ok(()),
            Some(GpuError::OutOfMemory { adapter, .. }) => Err(GpuError::OutOfMemory {
                adapter,
                doing: doing.into(),
            }),
            Some(GpuError::Internal { message, .. }) => {
                // Nothing that is asked of a destroyed device is valid. That it is destroyed comes out when it is polled.
                let _ = self.inner.device.poll(wgpu::PollType::Poll);
                self.take_failure()?;
                Err(GpuError::Internal {
                    doing: doing.into(),
                    message,
                })
            }
            Some(other) => Err(other),
        }
    }

    /// Plays a device that has room for so many buffers more, for the drivers here never say that they have none:
    /// those beyond are made, and reported as a device reports such a failure. `i64::MAX` ends it.
    #[cfg(test)]
    pub(crate) fn run_out_of_memory_after(&self, buffers: i64) {
        self.inner.buffers_left.store(buffers, Ordering::Relaxed);
    }

    /// Counts a buffer that is made.
    #[cfg(test)]
    pub(super) fn count_buffer(&self) {
        if self.inner.buffers_left.fetch_sub(1, Ordering::Relaxed) > 0 {
            return;
        }
        let mut failure = self
            .inner
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| GpuError::OutOfMemory {
            adapter: self.info().name.clone(),
            doing: "making a buffer".into(),
        });
    }

    /// The first error reported since the last call.
    ///
    /// # Errors
    /// [`GpuError::Lost`], again and again.
    fn take_failure(&self) -> Result<Option<GpuError>, GpuError> {
        let failure = self.inner.failure.lock();
        let mut failure = failure.unwrap_or_else(PoisonError::into_inner);
        match &*failure {
            Some(lost @ GpuError::Lost { .. }) => Err(lost.clone()),
            _ => Ok(failure.take()),
        }
    }
}

/// The least and greatest lanes a subgroup. Metal does not say: wgpu reports 4 and 64 for all it runs on (wgpu-hal
/// 30, `metal/mod.rs`), but the GPUs of Apple's own make have 32 threads a SIMD-group (Apple, *Metal Feature Set Tables*
/// and *Metal Shading Language Specification*; `threadExecutionWidth` is 32 on all of them). Where that were wrong, the
/// self-check would find the kernels wrong that rely on it.
fn subgroup_lanes(info: &wgpu::AdapterInfo) -> (u32, u32) {
    if info.backend == wgpu::Backend::Metal && info.name.starts_with("Apple") {
        return (32, 32);
    }
    (info.subgroup_min_size, info.subgroup_max_size)
}

/// The features we use where they are; what is not used is not requested. `SHADER_F16` serves cooperative matrices alone:
/// f16 weights are unpacked from `u32`.
fn wanted_features(
    disabled: Disabled,
    capabilities: &Capabilities,
    info: &wgpu::AdapterInfo,
) -> wgpu::Features {
    let mut features = wgpu::Features::PIPELINE_CACHE;
    features.set(wgpu::Features::SUBGROUP, !disabled.subgroups);
    // Where the device is the CPU all memory is the host's. Integrated GPUs are left alone: what they can map may be a
    // small or a slow part of what they have, and none was at hand to measure.
    features.set(
        wgpu::Features::MAPPABLE_PRIMARY_BUFFERS,
        info.device_type == wgpu::DeviceType::Cpu && !disabled.limits,
    );
    if capabilities.cooperative_size().is_some() {
        features |= wgpu::Features::SHADER_F16 | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    }
    features
}

/// The token without which wgpu gives no experimental feature, where `features` has one.
fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the token acknowledges that an experimental feature may have bugs that reach undefined behaviour. The one
    // feature requested is used by shaders of this crate's own alone, those named `*_cooperative.wgsl`. Their fragments
    // are loaded from and stored to their workgroup memory, within it for every tile that `CooperativeTile` and
    // `AttentionVariant` make, in uniform control flow. Each variant must pass the self-check on the device before its
    // results are used.
    #[allow(unsafe_code)]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// Routes wgpu's asynchronous errors into `failure`; the first one stays.
fn report_errors_into(
    failure: &Arc<Mutex<Option<GpuError>>>,
    loss: &Loss,
    device: &wgpu::Device,
    info: &wgpu::AdapterInfo,
) {
    let keep_first = |failure: &Mutex<Option<GpuError>>, error: GpuError| {
        failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    };
    let adapter = info.name.clone();
    let slot = Arc::clone(failure);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        keep_first(&slot, error_of(&error, &adapter, String::new()));
    }));
    let (slot, loss) = (Arc::clone(failure), loss.clone());
    device.set_device_lost_callback(move |reason, message| {
        let reason = match reason {
            wgpu::DeviceLostReason::Destroyed => "it was destroyed".into(),
            _ if message.is_empty() => "the driver gave no reason".into(),
            _ => one_line(&message),
        };
        // Whatever else it has reported: this is why.
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(GpuError::Lost { reason });
        loss.tell();
    });
}

/// wgpu's `error` as ours.
pub(super) fn error_of(error: &wgpu::Error, adapter: &str, doing: String) -> GpuError {
    match error {
        wgpu::Error::OutOfMemory { .. } => GpuError::OutOfMemory {
            adapter: adapter.into(),
            doing,
        },
        other => GpuError::Internal {
            doing,
            message: one_line(other),
        },
    }
}

/// `error`'s message without line breaks.
pub(super) fn one_line(error: &impl std::fmt::Display) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apples_own_gpus_have_subgroups_of_32() {
        let lanes = |name: &str, backend| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::Other, backend);
            info.name = name.into();
            (info.subgroup_min_size, info.subgroup_max_size) = (4, 64);
            subgroup_lanes(&info)
        };
        assert_eq!(lanes("Apple M3 Pro", wgpu::Backend::Metal), (32, 32));
        assert_eq!(lanes("AMD Radeon Pro 5500M", wgpu::Backend::Metal), (4, 64));
        assert_eq!(lanes("Apple M1 (G13G B1)", wgpu::Backend::Vulkan), (4, 64));
    }
}
