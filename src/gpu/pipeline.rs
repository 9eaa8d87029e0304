//! Compiled pipelines of kernels: built once per set of constants, in parallel, kept on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{JoinAll, join_all};

use super::device::error_of;
use super::shader_source::{ShaderFiles, ShaderText};
use super::tuning_cache::write_whole;
use super::{Access, Constants, GpuError, GpuOptions, Kernel};

/// A pipeline and the layout of its one bind group.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// What makes two pipelines the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PipelineKey {
    kernel: &'static str,
    constants: Vec<(&'static str, u64)>,
}

impl PipelineKey {
    pub(super) fn new(kernel: &Kernel, constants: &Constants) -> Self {
        Self {
            kernel: kernel.name,
            constants: constants
                .iter()
                .map(|&(name, value)| (name, value.to_bits()))
                .collect(),
        }
    }
}

/// Pipelines, or why the driver refused them: asked again, it would refuse them again.
type Pipelines = HashMap<PipelineKey, Result<Compiled, GpuError>>;

/// What the error scopes around a pipeline have caught, innermost first.
type Caught = JoinAll<Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>>;

/// A pipeline that the driver has not judged yet. Natively it does so at once, in a browser later.
struct Unjudged {
    key: PipelineKey,
    /// What an error says was being done.
    doing: String,
    text: Arc<ShaderText>,
    caught: Caught,
}

impl std::fmt::Debug for Unjudged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Unjudged").field(&self.key).finish()
    }
}

/// All pipelines of a device.
#[derive(Debug)]
pub(super) struct PipelineStore {
    compiled: Mutex<Pipelines>,
    unjudged: Mutex<Vec<Unjudged>>,
    /// The adapter's name, for errors.
    adapter: String,
    checked: bool,
    files: ShaderFiles,
    cache: Option<wgpu::PipelineCache>,
    cache_file: Option<PathBuf>,
    grown: AtomicBool,
}

impl PipelineStore {
    pub(super) fn new(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        options: &GpuOptions,
    ) -> Self {
        let is_browser = info.backend == wgpu::Backend::BrowserWebGpu;
        let cache_file = options
            .cache_dir
            .as_ref()
            .filter(|_| device.features().contains(wgpu::Features::PIPELINE_CACHE))
            .map(|dir| dir.join(cache_file_name(info, "bin")));
        let cache = cache_file
            .as_deref()
            .map(|file| open_disk_cache(device, file));
        Self {
            compiled: Mutex::default(),
            unjudged: Mutex::default(),
            adapter: info.name.clone(),
            checked: options.checked,
            files: ShaderFiles::new(options.shaders.clone(), is_browser),
            cache,
            cache_file,
            grown: AtomicBool::new(false),
        }
    }

    /// The folder that shaders are read from in the place of this program's own.
    pub(super) fn shader_folder(&self) -> Option<&Path> {
        self.files.folder()
    }

    /// Compiles those of `wanted` that are not there yet, on all cores.
    pub(super) fn compile_all(
        &self,
        device: &wgpu::Device,
        wanted: &[(&'static Kernel, Constants)],
    ) {
        let mut missing: Vec<(PipelineKey, &'static Kernel, &Constants)> = Vec::new();
        {
            let compiled = self.lock();
            for (kernel, constants) in wanted {
                let key = PipelineKey::new(kernel, constants);
                if !compiled.contains_key(&key) && missing.iter().all(|(other, ..)| *other != key) {
                    missing.push((key, kernel, constants));
                }
            }
        }
        if missing.is_empty() {
            return;
        }
        self.grown.store(true, Ordering::Relaxed);
        crate::platform::for_each_on_threads(missing, |(key, kernel, constants)| {
            let compiled = self.compile(device, &key, kernel, constants);
            self.lock().insert(key, compiled);
        });
    }

    /// Waits until the driver has judged every pipeline that was asked of it.
    ///
    /// # Errors
    /// The first that it refused; the error names the kernel.
    pub(super) async fn settle(&self) -> Result<(), GpuError> {
        let unjudged = std::mem::take(&mut *self.unjudged());
        let mut refused = Ok(());
        for Unjudged {
            key,
            doing,
            text,
            caught,
        } in unjudged
        {
            if let Err(error) = self.verdict(caught.await, doing, &text) {
                self.lock().insert(key, Err(error.clone()));
                refused = refused.and(Err(error));
            }
        }
        refused
    }

    /// The pipeline of `kernel` with `constants`, compiled now if need be.
    ///
    /// # Errors
    /// wgpu or the driver refused it; the error names the kernel.
    pub(super) fn get(
        &self,
        device: &wgpu::Device,
        kernel: &'static Kernel,
        constants: &Constants,
    ) -> Result<Compiled, GpuError> {
        let key = PipelineKey::new(kernel, constants);
        if let Some(compiled) = self.lock().get(&key) {
            return compiled.clone();
        }
        let compiled = self.compile(device, &key, kernel, constants);
        self.lock().entry(key).or_insert(compiled).clone()
    }

    /// Writes the cache file beside its place and renames it there, so that a reader never sees half a file.
    /// A cache that cannot be written is only a slower next start: logged, not an error.
    pub(super) fn save(&self) {
        let (Some(cache), Some(file)) = (&self.cache, &self.cache_file) else {
            return;
        };
        if !self.grown.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = cache.get_data() else {
            return;
        };
        // A run that found every pipeline in the file has nothing to add.
        if std::fs::read(file).is_ok_and(|old| old == data) {
            return;
        }
        if let Err(error) = write_whole(file, &data) {
            log::debug!("pipeline cache {} not written: {error}", file.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pipelines> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unjudged(&self) -> MutexGuard<'_, Vec<Unjudged>> {
        self.unjudged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hash of the text of `kernel`; 0 where it cannot be put together, which compiling it tells.
    pub(super) fn text_hash(&self, kernel: &Kernel) -> u64 {
        self.files.text(kernel).map_or(0, |text| text.hash)
    }

    /// Compiles, and catches what goes wrong: left to the device, an error would not say which kernel it was about. What
    /// is not known at once, [`PipelineStore::settle`] waits for.
    fn compile(
        &self,
        device: &wgpu::Device,
        key: &PipelineKey,
        kernel: &Kernel,
        constants: &Constants,
    ) -> Result<Compiled, GpuError> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let text = self.files.text(kernel)?;
        let scopes = [Validation, Internal, OutOfMemory].map(|it| device.push_error_scope(it));
        let compiled = self.compile_unguarded(device, kernel, &text, constants);
        let caught = scopes.into_iter().rev().map(|scope| scope.pop().boxed());
        let doing = format!("compiling kernel {} {constants:?}", kernel.name);
        self.judge(key, join_all(caught), doing, text)?;
        Ok(compiled)
    }

    /// The driver's verdict on the pipeline `key`, if it is known; otherwise it is to be waited for.
    fn judge(
        &self,
        key: &PipelineKey,
        mut caught: Caught,
        doing: String,
        text: Arc<ShaderText>,
    ) -> Result<(), GpuError> {
        if let Some(caught) = (&mut caught).now_or_never() {
            return self.verdict(caught, doing, &text);
        }
        let key = key.clone();
        self.unjudged().push(Unjudged {
            key,
            doing,
            text,
            caught,
        });
        Ok(())
    }

    fn verdict(
        &self,
        caught: Vec<Option<wgpu::Error>>,
        doing: String,
        text: &ShaderText,
    ) -> Result<(), GpuError> {
        // The outermost scope has what was wrong first.
        let Some(error) = caught.into_iter().flatten().last() else {
            return Ok(());
        };
        Err(match error_of(&error, &self.adapter, doing) {
            GpuError::Internal { doing, message } if !text.is_own => {
                let folder = self
                    .files
                    .folder()
                    .map(|folder| folder.display().to_string());
                GpuError::Shader {
                    place: folder.unwrap_or_default(),
                    problem: format!("{doing}: {}", text.trace_back(&message)),
                }
            }
            GpuError::Internal { doing, message } => GpuError::Internal {
                doing,
                message: text.trace_back(&message),
            },
            other => other,
        })
    }

    fn compile_unguarded(
        &self,
        device: &wgpu::Device,
        kernel: &Kernel,
        text: &ShaderText,
        constants: &Constants,
    ) -> Compiled {
        let module = self.shader_module(device, kernel, text);
        let layout = bind_group_layout(device, kernel);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                zero_initialize_workgroup_memory: self.checked,
            },
            cache: self.cache.as_ref(),
        });
        Compiled { pipeline, layout }
    }

    fn shader_module(
        &self,
        device: &wgpu::Device,
        kernel: &Kernel,
        text: &ShaderText,
    ) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(text.text.as_str().into()),
        };
        if self.checked || !text.is_own {
            return device.create_shader_module(descriptor);
        }
        // SAFETY: the text is one of this crate's own shaders. Each keeps its indices within its bindings for the sizes
        // and ids it is given, has no unbounded loop and writes workgroup memory before reading it. Sizes come from a
        // configuration that is checked when it is read (`model::config`), ids and lengths from requests that
        // `schedule::Engine` checks; the launches assert them again in debug builds, and the tests run every shader
        // at odd sizes both ways and compare.
        #[allow(unsafe_code)]
        unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }
}

fn bind_group_layout(device: &wgpu::Device, kernel: &Kernel) -> wgpu::BindGroupLayout {
    let entry = |binding: usize, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let storage = kernel.bindings.iter().enumerate().map(|(index, access)| {
        let read_only = *access == Access::Read;
        entry(index + 1, wgpu::BufferBindingType::Storage { read_only })
    });
    let entries: Vec<_> = std::iter::once(entry(0, wgpu::BufferBindingType::Uniform))
        .chain(storage)
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(kernel.name),
        entries: &entries,
    })
}

/// One file per adapter, driver and version of this crate.
pub(super) fn cache_file_name(info: &wgpu::AdapterInfo, extension: &str) -> String {
    let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!(
        "{}_{:x}_{:x}_{}_{}.{extension}",
        info.backend,
        info.vendor,
        info.device,
        plain(&info.driver_info),
        env!("CARGO_PKG_VERSION"),
    )
}

fn open_disk_cache(device: &wgpu::Device, file: &Path) -> wgpu::PipelineCache {
    let data = std::fs::read(file).ok();
    // SAFETY: the file is in this program's own cache folder, written only by `save` from `get_data` and renamed
    // into place whole; wgpu checks its header against adapter and driver and `fallback` starts afresh on a misfit.
    #[allow(unsafe_code)]
    unsafe {
        device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
            label: Some("blip2-wgpu"),
            data: data.as_deref(),
            fallback: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_channel::oneshot;

    use super::*;
    use crate::gpu::Gpu;

    #[test]
    fn a_verdict_that_comes_later_is_waited_for_and_kept() {
        let options = GpuOptions::default();
        let gpu = pollster::block_on(Gpu::open(&options)).expect("an adapter");
        let store = PipelineStore::new(gpu.device(), gpu.info(), &options);
        let kernel = Kernel::all()
            .find(|it| it.name == "gate")
            .expect("a kernel");
        let key = PipelineKey::new(kernel, &Vec::new());
        let get = || store.get(gpu.device(), kernel, &Vec::new());
        let ask = || {
            let (driver, later) = oneshot::channel();
            let caught = async { later.await.ok().flatten() }.boxed();
            let text = store.files.text(kernel).expect("our own");
            let doing = "compiling kernel gate".into();
            let judged = store.judge(&key, join_all([caught]), doing, text);
            judged.expect("not known yet");
            driver
        };
        get().expect("it compiles");
        ask().send(None).expect("waited for");
        pollster::block_on(store.settle()).expect("it is right");
        let refusal = wgpu::Error::Validation {
            source: "x".into(),
            description: "no such type".into(),
        };
        ask().send(Some(refusal)).expect("waited for");
        let error = pollster::block_on(store.settle()).expect_err("it is refused");
        assert!(
            error.to_string().contains("compiling kernel gate"),
            "{error}"
        );
        assert!(get().is_err());
        pollster::block_on(store.settle()).expect("it is told once");
    }
}
