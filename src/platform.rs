//! The one seam between a machine and a browser: clock, threads, parallel work.
//!
//! Everything of the core that needs a thread or a clock takes it from here. In a browser there is one thread: work runs
//! where it is given, and the event loop does what a polling thread does elsewhere.

use std::pin::Pin;
use std::time::Duration;

#[cfg(not(target_family = "wasm"))]
pub(crate) use std::time::Instant;
#[cfg(target_family = "wasm")]
pub(crate) use web_time::Instant;

/// Parallel iterators; on one thread they run in place.
pub(crate) use rayon::prelude as parallel;

/// Number of the calling thread among those that [`spawn`] uses.
pub(crate) fn worker_index() -> Option<usize> {
    rayon::current_thread_index()
}

/// Runs `work` on another thread, or at once where there is none.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) {
    if cfg!(target_family = "wasm") {
        work(); // rayon would queue it for threads that never come
    } else {
        rayon::spawn(work);
    }
}

/// Does `work`, which takes no time, after `time`. In a browser nothing is done: whoever counts on it looks at the clock
/// when it is woken by something else.
pub(crate) fn after(time: Duration, work: impl FnOnce() + Send + 'static) {
    if cfg!(target_family = "wasm") {
        return;
    }
    std::thread::spawn(move || {
        std::thread::sleep(time);
        work();
    });
}

/// What may have to move to another thread: anything in a browser, which has one.
#[cfg(not(target_family = "wasm"))]
pub trait MaybeSend: Send {}
#[cfg(not(target_family = "wasm"))]
impl<T: Send> MaybeSend for T {}
/// What may have to move to another thread: anything in a browser, which has one.
#[cfg(target_family = "wasm")]
pub trait MaybeSend {}
#[cfg(target_family = "wasm")]
impl<T> MaybeSend for T {}

/// A future whose type nobody needs to know.
#[cfg(not(target_family = "wasm"))]
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
#[cfg(target_family = "wasm")]
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// An iterator whose type nobody needs to know.
#[cfg(not(target_family = "wasm"))]
pub(crate) type BoxIterator<'a, T> = Box<dyn Iterator<Item = T> + Send + 'a>;
#[cfg(target_family = "wasm")]
pub(crate) type BoxIterator<'a, T> = Box<dyn Iterator<Item = T> + 'a>;

/// Runs `work` on each of `jobs`, on as many threads as the machine has. These are threads of their own: jobs such as
/// compiling a pipeline wait for a driver and would keep rayon's from computing.
pub(crate) fn for_each_on_threads<T: Send>(jobs: Vec<T>, work: impl Fn(T) + Sync) {
    if cfg!(target_family = "wasm") {
        return jobs.into_iter().for_each(work);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(jobs.len());
    let jobs = std::sync::Mutex::new(jobs.into_iter());
    let next = || {
        let mut jobs = jobs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        jobs.next()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = next() {
                    work(job);
                }
            });
        }
    });
}

/// A thread that runs what it is given, one after another, until it is dropped; then it is waited for.
#[derive(Debug)]
pub(crate) struct Attendant<T: Send + 'static> {
    /// `None` while dropping, as without a sender the thread's loop ends, and in a browser.
    sender: Option<std::sync::mpsc::Sender<T>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<T: Send + 'static> Attendant<T> {
    /// Starts the thread `name`, which does `work` with whatever it is given. In a browser nothing is done.
    pub(crate) fn new(name: &str, work: impl Fn(T) + Send + 'static) -> std::io::Result<Self> {
        if cfg!(target_family = "wasm") {
            return Ok(Self {
                sender: None,
                thread: None,
            });
        }
        let (sender, receiver) = std::sync::mpsc::channel::<T>();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || receiver.into_iter().for_each(work))?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Gives the thread something to do.
    pub(crate) fn give(&self, job: T) {
        if let Some(sender) = &self.sender {
            // The receiver lives as long as the sender: sending fails only while the process ends.
            let _ = sender.send(job);
        }
    }
}

impl<T: Send + 'static> Drop for Attendant<T> {
    fn drop(&mut self) {
        drop(self.sender.take());
        let thread = self.thread.take();
        // The thread itself may hold the last handle: it cannot wait for itself.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_is_done_once() {
        let sum = AtomicUsize::new(0);
        for_each_on_threads((0..1000).collect(), |job: usize| {
            sum.fetch_add(job, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 499_500);
        for_each_on_threads(Vec::<usize>::new(), |_| panic!("nothing to do"));
    }

    #[test]
    fn an_attendant_has_done_all_when_it_is_dropped() {
        let done = std::sync::Arc::new(AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&done);
        let attendant = Attendant::new("test", move |amount: usize| {
            counter.fetch_add(amount, Ordering::Relaxed);
        });
        let attendant = attendant.expect("a thread");
        (0..10).for_each(|job| attendant.give(job));
        drop(attendant);
        assert_eq!(done.load(Ordering::Relaxed), 45);
    }
}
