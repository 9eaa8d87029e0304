//! Waiting without blocking: one thread per device drives wgpu's callbacks.
//!
//! Native wgpu runs mapping callbacks only inside `Device::poll`. The library is async and must not block,
//! so a thread of its own waits for each submission and futures are woken from there.

use std::sync::mpsc;
use std::thread::JoinHandle;

/// Hands submissions to the polling thread; the thread has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Poller {
    /// `None` only while dropping: without a sender the thread's loop ends.
    sender: Option<mpsc::Sender<wgpu::SubmissionIndex>>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    /// Starts the thread for `device`.
    pub(super) fn new(device: wgpu::Device) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<wgpu::SubmissionIndex>();
        let thread = std::thread::Builder::new()
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
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Sees to it that the callbacks of `submission` run once it is done.
    pub(super) fn watch(&self, submission: wgpu::SubmissionIndex) {
        if let Some(sender) = &self.sender {
            // The receiver lives as long as the sender: sending fails only while the process ends.
            let _ = sender.send(submission);
        }
    }
}

impl Drop for Poller {
    /// Waits for the thread. Left to itself it might destroy the device while the process ends, under the feet of
    /// the driver's own exit handlers: a segmentation fault now and then on Mesa.
    fn drop(&mut self) {
        drop(self.sender.take());
        let thread = self.thread.take();
        // A callback may have held the last handle to the device: the thread cannot wait for itself.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}
