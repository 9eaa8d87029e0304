//! Waiting without blocking: one thread per device drives wgpu's callbacks.
//!
//! Native wgpu runs mapping callbacks only inside `Device::poll`. The library is async and must not block,
//! so a thread of its own waits for each submission and futures are woken from there.

use std::sync::mpsc;

/// Hands submissions to the polling thread; the thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Poller {
    sender: mpsc::Sender<wgpu::SubmissionIndex>,
}

impl Poller {
    /// Starts the thread for `device`.
    pub(super) fn new(device: wgpu::Device) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<wgpu::SubmissionIndex>();
        std::thread::Builder::new()
            .name("blip2-wgpu poll".into())
            .spawn(move || {
                for submission in receiver {
                    // A failing poll means a lost device: its callbacks fire all the same.
                    let _ = device.poll(wgpu::PollType::Wait {
                        submission_index: Some(submission),
                        timeout: None,
                    });
                }
            })?;
        Ok(Self { sender })
    }

    /// Sees to it that the callbacks of `submission` run once it is done.
    pub(super) fn watch(&self, submission: wgpu::SubmissionIndex) {
        // The receiver lives as long as the sender: sending fails only while the process ends.
        let _ = self.sender.send(submission);
    }
}
