//! Finding and choosing an adapter.

use super::{Capabilities, GpuError};

pub use wgpu::Backend;

/// Which adapter to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The most capable: discrete before integrated before software.
    #[default]
    Auto,
    /// The n-th of [`list_adapters`].
    Index(usize),
    /// The first whose name contains this text, case ignored.
    Name(String),
}

impl AdapterChoice {
    /// Reads `auto`, a number or (part of) a name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "" | "auto" => Self::Auto,
            other => other
                .parse()
                .map_or_else(|_| Self::Name(other.to_owned()), Self::Index),
        }
    }
}

impl std::fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One adapter of this machine as `blip2-wgpu devices` shows it.
#[derive(Debug, Clone)]
pub struct AdapterReport {
    /// Name, backend, driver and kind of device.
    pub info: wgpu::AdapterInfo,
    /// What the adapter can do for us.
    pub capabilities: Capabilities,
    /// Whether `auto` would choose it.
    pub preferred: bool,
}

/// All adapters of this machine, in the order that [`AdapterChoice::Index`] counts.
///
/// # Errors
/// [`GpuError::NoAdapter`] with the package to install if there is none.
pub async fn list_adapters() -> Result<Vec<AdapterReport>, GpuError> {
    let adapters = all_adapters(&instance()).await?;
    let preferred = preferred_index(&adapters);
    Ok(adapters
        .iter()
        .enumerate()
        .map(|(index, adapter)| AdapterReport {
            info: adapter.get_info(),
            capabilities: Capabilities::of_adapter(adapter),
            preferred: index == preferred,
        })
        .collect())
}

/// A wgpu instance for the backends this build has.
pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // No graphics debugging, no indirect dispatches: neither layer would serve us.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    wgpu::Instance::new(descriptor)
}

/// Every adapter, or the error that says what to install.
pub(super) async fn all_adapters(
    instance: &wgpu::Instance,
) -> Result<Vec<wgpu::Adapter>, GpuError> {
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    if adapters.is_empty() {
        return Err(GpuError::NoAdapter { remedy: remedy() });
    }
    Ok(adapters)
}

/// Picks the adapter that `choice` means.
pub(super) fn choose(
    adapters: Vec<wgpu::Adapter>,
    choice: &AdapterChoice,
) -> Result<wgpu::Adapter, GpuError> {
    let index = match choice {
        AdapterChoice::Auto => Some(preferred_index(&adapters)),
        AdapterChoice::Index(index) => Some(*index),
        AdapterChoice::Name(name) => {
            let wanted = name.to_lowercase();
            adapters
                .iter()
                .position(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
        }
    };
    let available = adapters
        .iter()
        .enumerate()
        .map(|(index, adapter)| format!("{index}: {}", adapter.get_info().name))
        .collect::<Vec<_>>()
        .join(", ");
    index
        .and_then(|index| adapters.into_iter().nth(index))
        .ok_or_else(|| GpuError::UnknownAdapter {
            wanted: choice.to_string(),
            available,
        })
}

/// The first adapter of the best kind.
fn preferred_index(adapters: &[wgpu::Adapter]) -> usize {
    let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (0..adapters.len())
        .min_by_key(|&index| rank(&adapters[index]))
        .unwrap_or(0)
}

/// What to install on this system so that an adapter appears.
fn remedy() -> String {
    if cfg!(target_os = "windows") {
        return "install your graphics card's current driver (it brings DirectX 12 and Vulkan)"
            .into();
    }
    if cfg!(target_vendor = "apple") {
        return "this Mac has no Metal device; macOS 10.14 or newer on Metal hardware is needed"
            .into();
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let install = install_command(&release);
    format!(
        "install a Vulkan driver, for example `{install}` (software rendering included), \
         or your graphics card's own driver"
    )
}

/// The package manager's command for Mesa's Vulkan drivers, from the text of `/etc/os-release`.
fn install_command(os_release: &str) -> &'static str {
    let is = |names: &[&str]| {
        os_release
            .lines()
            .filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE="))
            .any(|line| names.iter().any(|name| line.contains(name)))
    };
    if is(&["debian", "ubuntu"]) {
        "apt-get install mesa-vulkan-drivers libvulkan1"
    } else if is(&["fedora", "rhel", "centos"]) {
        "dnf install mesa-vulkan-drivers vulkan-loader"
    } else if is(&["arch"]) {
        "pacman -S vulkan-swrast vulkan-icd-loader"
    } else if is(&["alpine"]) {
        "apk add mesa-vulkan-swrast vulkan-loader"
    } else if is(&["suse"]) {
        "zypper install libvulkan_lvp libvulkan1"
    } else {
        "mesa-vulkan-drivers and the Vulkan loader from your package manager"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_reads_number_name_and_auto() {
        assert_eq!(AdapterChoice::parse("auto"), AdapterChoice::Auto);
        assert_eq!(AdapterChoice::parse("2"), AdapterChoice::Index(2));
        assert_eq!(
            AdapterChoice::parse("llvm"),
            AdapterChoice::Name("llvm".into())
        );
    }

    #[test]
    fn remedy_names_the_systems_own_package() {
        assert!(install_command("NAME=x\nID=debian\n").starts_with("apt-get"));
        assert!(install_command("ID=pop\nID_LIKE=\"ubuntu debian\"\n").starts_with("apt-get"));
        assert!(install_command("ID=fedora\n").starts_with("dnf"));
        assert!(install_command("").contains("package manager"));
    }
}
