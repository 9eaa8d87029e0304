//! Waiting without blocking: one thread per device drives wgpu's callbacks.
//!
//! Native wgpu runs mapping callbacks only inside `Device::poll`. The library is async and must not block,
//! so a thread of its own waits for each submission and futures are woken from there. In a browser the event loop does
//! that, and there is no thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{Either, Shared, select};

use crate::platform::Attendant;

/// Tells those who wait for a device that it is gone: not all callbacks fire then.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    teller: Arc<Mutex<Option<oneshot::Sender<()>>>>,
    told: Shared<oneshot::Receiver<()>>,
}

impl Loss {
    pub(super) fn new() -> Self {
        let (sender, receiver) = oneshot::channel();
        Self {
            teller: Arc::new(Mutex::new(Some(sender))),
            told: receiver.shared(),
        }
    }

    /// The device is gone.
    pub(super) fn tell(&self) {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        drop(teller.take());
    }

    /// What `callback` sends; `None` if it never will.
    pub(super) async fn or<T>(&self, callback: oneshot::Receiver<T>) -> Option<T> {
        match select(callback, self.told.clone()).await {
            Either::Left((sent, _)) => sent.ok(),
            Either::Right((_, callback)) => callback.now_or_never()?.ok(),
        }
    }
}

/// Hands submissions to the polling thread. Dropping it waits for the thread: left to itself that might destroy the
/// device while the process ends, under the feet of the driver's own exit handlers: a segmentation fault now and then on
/// Mesa.
#[derive(Debug)]
pub(super) struct Poller(Attendant<Job>);

/// What the polling thread does, in the order given.
#[derive(Debug)]
enum Job {
    /// Waits for a submission.
    Watch(wgpu::SubmissionIndex),
    /// Tells that the callbacks of all earlier ones have run.
    Tell(oneshot::Sender<()>),
}

impl Poller {
    /// Starts the thread for `device`.
    pub(super) fn new(device: wgpu::Device, loss: Loss) -> std::io::Result<Self> {
        // wgpu panics where a driver loses the device while it is polled; this thread must go on.
        let poll = move |how| catch_unwind(AssertUnwindSafe(|| device.poll(how)));
        let work = move |job| {
            let submission = match job {
                Job::Watch(submission) => submission,
                Job::Tell(sender) => return drop(sender),
            };
            let waited = poll(wgpu::PollType::Wait {
                submission_index: Some(submission),
                timeout: None,
            });
            match waited {
                Ok(Ok(_)) => {}
                // A destroyed device takes no submission. What was under way on it is told of by any poll.
                Ok(Err(_)) => drop(poll(wgpu::PollType::Poll)),
                Err(_) => loss.tell(),
            }
        };
        Ok(Self(Attendant::new("blip2-wgpu poll", work)?))
    }

    /// Sees to it that the callbacks of `submission` run once it is done.
    pub(super) fn watch(&self, submission: wgpu::SubmissionIndex) {
        self.0.give(Job::Watch(submission));
    }

    /// Waits until the callbacks of everything watched so far have run. In a browser it does not wait.
    pub(super) async fn settle(&self) {
        let (sender, told) = oneshot::channel();
        self.0.give(Job::Tell(sender));
        let _ = told.await; // the sender is dropped, here or by a thread that is gone
    }
}
