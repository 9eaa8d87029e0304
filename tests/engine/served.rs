//! A service over the tiny checkpoint that the test's own thread drives.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use blip2_wgpu::Error;
use blip2_wgpu::generate::Generated;
use blip2_wgpu::gpu::{Gpu, GpuOptions};
use blip2_wgpu::image::Preprocessor;
use blip2_wgpu::model::{Blip2Config, Blip2Model};
use blip2_wgpu::schedule::{
    Engine, Event, Handle, Pixels, Request, RequestTimings, Service, ServiceOptions, Ticket,
};
use blip2_wgpu::weights::{Checkpoint, Outline};
use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};

use crate::common::{device, images};

/// A request and what it is about.
#[derive(Debug, Clone)]
pub struct Asked {
    pub request: Request,
    pub image: Pixels,
}

/// What became of a request.
pub type Outcome = Result<(Vec<Generated>, RequestTimings), Arc<Error>>;

/// A service and its door.
#[derive(Debug)]
pub struct Served {
    pub service: Service,
    pub handle: Handle,
}

/// The engine of the checkpoint `folder` on `gpu`.
pub fn engine_on(gpu: &Gpu, folder: &Path) -> Engine {
    let config = Blip2Config::open(folder).expect("a config");
    let decoder = config.language_model().expect("generative").clone();
    let checkpoint = Checkpoint::open(folder).expect("weights");
    let outline = Outline::new(gpu, &checkpoint, None, |tensors| {
        Blip2Model::load(tensors, &config, &decoder, 42)
    });
    let outline = outline.expect("all tensors");
    let (bytes, mut progress) = (outline.device_bytes(), |_, _| {});
    let model = pollster::block_on(outline.fill(&mut progress)).expect("room");
    Engine::new(gpu.clone(), model, bytes)
}

/// Both pictures as the checkpoint `folder` takes them, and three mixtures of them.
pub fn pixels(folder: &Path) -> Vec<Pixels> {
    let preprocessor = Preprocessor::from_files(folder, 42).expect("a preprocessor file");
    let [house, boat] = images().map(|image| preprocessor.apply(&image).expect("pixels"));
    [0.0, 0.25, 0.5, 0.75, 1.0]
        .map(|share: f32| {
            let mixed = house.iter().zip(&boat);
            Arc::new(mixed.map(|(a, b)| a + share * (b - a)).collect())
        })
        .to_vec()
}

/// `pixels` with another value in a corner: what no other test asks about.
pub fn another(pixels: &Pixels, value: f32) -> Pixels {
    let mut pixels = pixels.to_vec();
    pixels[0] = value;
    Arc::new(pixels)
}

impl Served {
    /// The checkpoint `folder` on a device of its own.
    pub fn open(folder: &Path, options: &GpuOptions) -> Self {
        Self::of(engine_on(&device(options), folder))
    }

    pub fn of(engine: Engine) -> Self {
        let options = ServiceOptions {
            batch_size: 4,
            queue: 2000,
            image_places: 0,
        };
        let (service, handle) = Service::new(engine, options);
        Self { service, handle }
    }

    pub fn submit(&self, asked: &Asked) -> Ticket {
        let image = Arc::clone(&asked.image);
        let ticket = self.handle.submit(asked.request.clone(), image);
        ticket.expect("a good request")
    }

    /// Drives the service while `work` lasts.
    #[track_caller]
    pub fn drive_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        pollster::block_on(async {
            match select(pin!(work), pin!(self.service.drive())).await {
                Either::Left((done, _)) => done,
                Either::Right((ended, _)) => panic!("the service has ended: {ended:?}"),
            }
        })
    }

    /// What becomes of `tickets`.
    #[track_caller]
    pub fn outcomes(&mut self, tickets: Vec<Ticket>) -> Vec<Outcome> {
        self.drive_while(join_all(tickets.into_iter().map(outcome)))
    }

    /// The texts of `asked`, up to `batch` at once, submitted in the `order` given but returned in their own.
    #[track_caller]
    pub fn texts_in(
        &mut self,
        asked: &[Asked],
        order: &[usize],
        batch: usize,
    ) -> Vec<Vec<Generated>> {
        self.service.set_batch_size(batch);
        let tickets = order.iter().map(|&index| self.submit(&asked[index]));
        let tickets = tickets.collect();
        let mut texts = vec![Vec::new(); asked.len()];
        for (outcome, &index) in self.outcomes(tickets).into_iter().zip(order) {
            texts[index] = outcome.expect("texts").0;
        }
        texts
    }

    /// The texts of `asked`, up to `batch` at once.
    #[track_caller]
    pub fn texts(&mut self, asked: &[Asked], batch: usize) -> Vec<Vec<Generated>> {
        let order: Vec<usize> = (0..asked.len()).collect();
        self.texts_in(asked, &order, batch)
    }

    /// The texts of `asked`, one after another.
    #[track_caller]
    pub fn alone(&mut self, asked: &[Asked]) -> Vec<Vec<Generated>> {
        let one = |asked| self.texts(std::slice::from_ref(asked), 1).remove(0);
        asked.iter().map(one).collect()
    }
}

/// What becomes of a request.
pub async fn outcome(mut ticket: Ticket) -> Outcome {
    while let Some(event) = ticket.next().await {
        match event {
            Event::Token { .. } => {}
            Event::Done { texts, timings } => return Ok((texts, timings)),
            Event::Failed { error } => return Err(error),
        }
    }
    panic!("a ticket without an end");
}

/// The tokens of texts.
pub fn tokens(texts: &[Generated]) -> Vec<Vec<u32>> {
    texts.iter().map(|text| text.tokens.clone()).collect()
}
