//! Waiting without blocking: one thread per device drives wgpu's callbacks.
//!
//! Native wgpu runs mapping callbacks only inside `Device::poll`. The library is async and must not block,
//! so a thread of its own waits for each submission and futures are woken from there. In a browser the event loop does
//! that, and there is no thread.

use crate::platform::Attendant;

/// Hands submissions to the polling thread. Dropping it waits for the thread: left to itself that might destroy the
/// device while the process ends, under the feet of the driver's own exit handlers: a segmentation fault now and then on
/// Mesa.
#[derive(Debug)]
pub(super) struct Poller(Attendant<wgpu::SubmissionIndex>);

impl Poller {
    /// Starts the thread for `device`.
    pub(super) fn new(device: wgpu::Device) -> std::io::Result<Self> {
        let wait = move |submission| {
            // A failing poll means a lost device: its callbacks fire all the same.
            let _ = device.poll(wgpu::PollType::Wait {
                submission_index: Some(submission),
                timeout: None,
            });
        };
        Ok(Self(Attendant::new("blip2-wgpu poll", wait)?))
    }

    /// Sees to it that the callbacks of `submission` run once it is done.
    pub(super) fn watch(&self, submission: wgpu::SubmissionIndex) {
        self.0.give(submission);
    }
}
