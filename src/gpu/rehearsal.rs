//! Rehearsals: everything is recorded as it would be, buffers are counted instead of made.
//!
//! What a program will take on the device is told best by the code that makes it. A rehearsing [`Gpu`] runs that code: each
//! buffer it is asked for is one small placeholder, writes go nowhere, and finished programs are empty.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Gpu;

/// What has been asked for in a rehearsal.
#[derive(Debug)]
pub(super) struct Rehearsal {
    placeholder: wgpu::Buffer,
    bytes: AtomicU64,
    largest: AtomicU64,
}

impl Gpu {
    /// This device, rehearsing, with nothing counted yet.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        let placeholder = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("placeholder"),
            size: 16,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let rehearsal = Rehearsal {
            placeholder,
            bytes: AtomicU64::new(0),
            largest: AtomicU64::new(0),
        };
        self.rehearsing(Arc::new(rehearsal))
    }

    /// Bytes of all buffers asked for in this rehearsal, and of the largest.
    #[must_use]
    pub fn rehearsed_bytes(&self) -> [u64; 2] {
        self.rehearsed().map_or([0; 2], |rehearsal| {
            [
                rehearsal.bytes.load(Ordering::Relaxed),
                rehearsal.largest.load(Ordering::Relaxed),
            ]
        })
    }

    /// Counts a buffer and gives what stands for it, in a rehearsal.
    pub(super) fn rehearse_buffer(&self, bytes: u64) -> Option<wgpu::Buffer> {
        let rehearsal = self.rehearsed()?;
        rehearsal.bytes.fetch_add(bytes, Ordering::Relaxed);
        rehearsal.largest.fetch_max(bytes, Ordering::Relaxed);
        Some(rehearsal.placeholder.clone())
    }
}
