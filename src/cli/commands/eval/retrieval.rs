//! `blip2-wgpu eval retrieval`: every image asks for its texts, every text for its image.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::eval::{
    CaptionData, Case, EvalError, Figure, Id, ImageFolder, ListedImage, Predictions, RECALL_AT,
    ResultFields, RetrievalScores, retrieval_ceiling,
};
use crate::task::{
    Direction, Gallery, GalleryEvent, GalleryImage, GallerySource, RetrieveOptions, Retrieved,
    Retriever, TextFeatures, TextUse,
};

use super::args::{DataArgs, PartArgs, RankingArgs, RetrievalArgs, TruthArgs};
use super::finish::{Measured, Outcome, finish, report_missing, report_unknown, thumbnail_of};
use super::{make_folder, settings, with_limit};
use crate::cli::shared::Shared;
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::retrieval::image_size;
use crate::cli::shared::scores::retrieval_scores_json;

/// mmpretrain's figure for blip2 on COCO.
const PUBLISHED: f64 = 85.40;
const PUBLISHED_FOR: &str = "COCO retrieval, image to text, as mmpretrain reports it";

/// Queries between two writes to the disk.
const QUERIES_AT_A_TIME: usize = 256;
/// Finds of a query that are kept.
const KEPT: usize = 10;

/// Ranks for the queries that are not ranked yet, then measures; `false` if any image failed.
pub async fn run(shared: &Shared, args: &RetrievalArgs, output: &Output) -> Result<Outcome, Error> {
    // Wrong usage comes before anything a file could fail with.
    shared.checkpoint()?;
    shared.gpu_options()?;
    let mut data = CaptionData::read(&args.truth.annotations, &args.truth.split)?;
    limit(&mut data, args.limit);
    check_texts(&data)?;
    let mut folder = ImageFolder::open(&args.data.images)?;
    make_folder(&args.data.out)?;
    let ranking = &args.ranking;
    let size = image_size(ranking.image_size, ranking.preset);
    let settings = settings(
        "retrieval",
        shared,
        &args.data.images,
        &[("annotations", &args.truth.annotations)],
        size,
        // With fewer candidates the task is another.
        with_limit(given(ranking), args.limit),
    )?;
    let part = PartArgs {
        limit: None,
        shard: args.shard,
    };
    let file = part.file(&args.data.out, "predictions", "jsonl");
    let mut predictions = Predictions::open(&file, ResultFields::RANKED, &settings, None)?;

    let mut all_well = true;
    let mut files = Vec::new();
    for (index, image) in data.images.iter().enumerate() {
        match folder.find(&image.paths, &image.id, &data.file) {
            Ok(file) => files.push((index, file)),
            Err(error) => {
                output.error(&error);
                all_well = false;
            }
        }
    }
    let queries = Queries::new(&data);
    let pending = |index: usize| part.has(index) && predictions.get(&queries.ids[index]).is_none();
    let wanted: Vec<usize> = (0..queries.ids.len())
        .filter(|&index| pending(index))
        .collect();
    if !wanted.is_empty() && !files.is_empty() {
        let mut model = shared
            .open_retriever(size, args.ranking.batch_size.0, output)
            .await?;
        let mut ranker = Ranker {
            model: &mut model,
            data: &data,
            queries: &queries,
            ranking,
            index: part.file(&args.data.out, "images", "index"),
            by_name: HashMap::new(),
            output,
        };
        all_well &= ranker.run(&files, &wanted, &mut predictions).await?;
        model.gpu().save_pipelines();
    }
    predictions.begin()?;
    let truth = Truth {
        args: &args.data,
        part: &part,
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, &settings, &predictions, output)?
        .and(all_well))
}

/// Measures joined parts; `false` if a query has no finds.
pub fn finish_merged(
    args: &DataArgs,
    truth: &TruthArgs,
    settings: &Map<String, Value>,
    predictions: &Predictions,
    output: &Output,
) -> Result<Outcome, Error> {
    let mut data = CaptionData::read(&truth.annotations, &truth.split)?;
    limit(&mut data, PartArgs::whole(settings).limit);
    let mut folder = ImageFolder::open(&args.images)?;
    let queries = Queries::new(&data);
    let missing = queries
        .ids
        .iter()
        .filter(|id| predictions.get(id).is_none());
    let complete = report_missing(missing, &data.file, output);
    let truth = Truth {
        args,
        part: &PartArgs {
            limit: None, // the data is cut to it
            shard: None,
        },
        data: &data,
    };
    Ok(truth
        .measure(&mut folder, settings, predictions, output)?
        .and(complete))
}

fn given(ranking: &RankingArgs) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("--topk".to_owned(), ranking.topk.to_string()),
        (
            "--preset".to_owned(),
            format!("{:?}", ranking.preset).to_lowercase(),
        ),
        ("--itc-only".to_owned(), ranking.itc_only.to_string()),
    ])
}

/// Keeps the first images and their texts.
fn limit(data: &mut CaptionData, limit: Option<usize>) {
    if let Some(limit) = limit {
        data.images.truncate(limit);
        data.texts.retain(|text| text.image < limit);
    }
}

/// Each image must have a text to be found by, and no text may be empty.
fn check_texts(data: &CaptionData) -> Result<(), EvalError> {
    let wrong = |image: &ListedImage, problem: &str| EvalError::Item {
        file: data.file.clone(),
        item: format!("image {}", image.id),
        problem: problem.into(),
    };
    for (image, captions) in data.images.iter().zip(data.captions()) {
        if captions.is_empty() {
            return Err(wrong(
                image,
                "has no text to be found by; take the image out, or get the file anew",
            ));
        }
        if captions.iter().any(|caption| caption.trim().is_empty()) {
            return Err(wrong(image, "has an empty text; take it out"));
        }
    }
    Ok(())
}

/// The images' and the texts' queries: images first.
struct Queries {
    ids: Vec<Id>,
}

impl Queries {
    fn new(data: &CaptionData) -> Self {
        let images = data
            .images
            .iter()
            .map(|image| Id::Text(format!("image {}", image.id)));
        let texts = (0..data.texts.len()).map(|index| Id::Text(format!("text {index}")));
        Self {
            ids: images.chain(texts).collect(),
        }
    }
}

/// Runs queries.
struct Ranker<'a> {
    model: &'a mut Retriever,
    data: &'a CaptionData,
    queries: &'a Queries,
    ranking: &'a RankingArgs,
    /// Where the images' features are kept.
    index: PathBuf,
    /// The images' numbers in the dataset by what the gallery calls them.
    by_name: HashMap<String, usize>,
    output: &'a Output,
}

impl Ranker<'_> {
    /// Ranks for the `wanted` queries; `false` if an image cannot be read.
    async fn run(
        &mut self,
        files: &[(usize, PathBuf)],
        wanted: &[usize],
        predictions: &mut Predictions,
    ) -> Result<bool, Error> {
        let count = self.data.images.len();
        let names = files.iter().map(|(image, file)| {
            let id = &self.data.images[*image].id;
            (format!("{}: image {id}", file.display()), *image)
        });
        self.by_name = names.collect();
        let bar = self.output.items(files.len(), "images", false);
        let mut all = self.gallery(files, &mut |done| bar.inc(done)).await?;
        drop(bar);
        let readable: HashMap<usize, usize> = (0..all.len())
            .filter_map(|place| Some((self.image(&all, place)?, place)))
            .collect();
        let texts = self.texts().await?;

        let bar = self.output.items(wanted.len(), "queries", false);
        // Images ask for texts: a gallery of those that ask, from the index.
        let asking: Vec<(usize, PathBuf)> = files
            .iter()
            .filter(|(image, _)| {
                readable.contains_key(image) && wanted.binary_search(image).is_ok()
            })
            .cloned()
            .collect();
        for chunk in asking.chunks(QUERIES_AT_A_TIME) {
            let mut some = self.gallery(chunk, &mut |_| {}).await?;
            let found = self
                .retrieve(&mut some, &texts, Direction::ImageToText)
                .await?;
            let ranked = found.iter().enumerate().filter_map(|(place, finds)| {
                let image = self.image(&some, place)?;
                let rank = finds
                    .iter()
                    .position(|find| self.data.texts[find.item].image == image);
                Some((
                    self.queries.ids[image].clone(),
                    record(rank, finds.iter().map(|f| (json!(f.item), f.score))),
                ))
            });
            predictions.add(ranked.collect())?;
            bar.inc(chunk.len() as u64);
        }
        // Texts ask for images, all of them.
        let asking: Vec<usize> = wanted
            .iter()
            .filter_map(|query| query.checked_sub(count))
            .filter(|&text| readable.contains_key(&self.data.texts[text].image))
            .collect();
        for chunk in asking.chunks(QUERIES_AT_A_TIME) {
            let some: Vec<TextFeatures> = chunk.iter().map(|&text| texts[text].clone()).collect();
            let found = self
                .retrieve(&mut all, &some, Direction::TextToImage)
                .await?;
            let ranked = found.iter().zip(chunk).map(|(finds, &text)| {
                let own = readable.get(&self.data.texts[text].image);
                let rank = finds.iter().position(|find| Some(&find.item) == own);
                let items = finds.iter().filter_map(|find| {
                    let image = self.image(&all, find.item)?;
                    Some((self.data.images[image].id.to_json(), find.score))
                });
                (self.queries.ids[count + text].clone(), record(rank, items))
            });
            predictions.add(ranked.collect())?;
            bar.inc(chunk.len() as u64);
        }
        Ok(readable.len() == files.len())
    }

    /// The number in the dataset of an image in a gallery.
    fn image(&self, gallery: &Gallery, place: usize) -> Option<usize> {
        self.by_name.get(gallery.name(place)).copied()
    }

    /// Encodes images, or takes them from the index; each is called by its file and id.
    async fn gallery(
        &mut self,
        files: &[(usize, PathBuf)],
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Gallery, Error> {
        let images = files.iter().map(|(image, file)| GalleryImage {
            name: format!("{}: image {}", file.display(), self.data.images[*image].id),
            source: GallerySource::Path(file.clone()),
        });
        let images = images.collect();
        let batch_size = self.model.batch_size(self.ranking.batch_size.0);
        let policy = self.ranking.preset.decode_policy();
        let output = self.output;
        Gallery::encode(
            self.model,
            images,
            policy,
            Some(&self.index),
            batch_size,
            &mut |event| match event {
                GalleryEvent::Known(count) | GalleryEvent::Encoded(count) => progress(count as u64),
                GalleryEvent::Bad(error) => output.error(error),
            },
        )
        .await
    }

    async fn texts(&mut self) -> Result<Vec<TextFeatures>, Error> {
        let mut features = Vec::with_capacity(self.data.texts.len());
        for texts in self.data.texts.chunks(2 * QUERIES_AT_A_TIME) {
            let texts: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
            features.extend(
                self.model
                    .encode_texts(&texts, self.ranking.preset, TextUse::Retrieve)
                    .await?,
            );
        }
        Ok(features)
    }

    async fn retrieve(
        &mut self,
        gallery: &mut Gallery,
        texts: &[TextFeatures],
        direction: Direction,
    ) -> Result<Vec<Vec<Retrieved>>, Error> {
        let options = RetrieveOptions {
            direction,
            top_k: self.ranking.topk,
            rerank: !self.ranking.itc_only,
            batch_size: self.ranking.batch_size.0,
        };
        self.model
            .retrieve(gallery, texts, &options, &mut |_, _| {})
            .await
    }
}

/// A query's finds as they are kept: the place of the first true one among all candidates, and the best few.
fn record(rank: Option<usize>, finds: impl Iterator<Item = (Value, f32)>) -> Value {
    let best = finds
        .take(KEPT)
        .map(|(item, score)| json!([item, digits(score)]));
    json!({ "rank": rank, "best": best.collect::<Vec<_>>() })
}

/// A dataset and what of it to measure.
struct Truth<'a> {
    args: &'a DataArgs,
    part: &'a PartArgs,
    data: &'a CaptionData,
}

impl Truth<'_> {
    /// Recall of the queries of the part that are ranked.
    fn measure(
        &self,
        folder: &mut ImageFolder,
        settings: &Map<String, Value>,
        predictions: &Predictions,
        output: &Output,
    ) -> Result<Outcome, Error> {
        let Self { args, part, data } = self;
        let queries = Queries::new(data);
        let (mut ranks, mut ranked) = ([Vec::new(), Vec::new()], Vec::new());
        for (index, id) in queries.ids.iter().enumerate() {
            if let (true, Some(found)) = (part.has(index), predictions.get(id)) {
                let rank = found["rank"]
                    .as_u64()
                    .map_or(usize::MAX, |rank| rank as usize);
                ranks[usize::from(index >= data.images.len())].push(rank);
                ranked.push((index, rank, found));
            }
        }
        let [image_ranks, text_ranks] = ranks;
        let scores = RetrievalScores::from_ranks(image_ranks, text_ranks);
        let captions = data.captions();
        let mut images: Vec<_> = ranked
            .iter()
            .filter(|(index, ..)| *index < data.images.len())
            .collect();
        images.sort_by_key(|(_, rank, _)| std::cmp::Reverse(*rank));
        let cases = images
            .into_iter()
            .take(args.report_cases)
            .map(|&(index, rank, found)| {
                let image = &data.images[index];
                let file = folder.find(&image.paths, &image.id, &data.file).ok();
                let first = found["best"][0][0]
                    .as_u64()
                    .and_then(|text| data.texts.get(text as usize));
                Case {
                    thumbnail: file.and_then(|file| thumbnail_of(&file)),
                    name: format!("image {}", image.id),
                    question: None,
                    prediction: first.map_or_else(String::new, |text| text.text.clone()),
                    truth: captions[index]
                        .iter()
                        .map(|&text| text.to_owned())
                        .collect(),
                    score: match rank {
                        usize::MAX => "none of its texts among the candidates".into(),
                        _ => format!("its best text at place {}", rank + 1),
                    },
                }
            });
        let all_known = report_unknown(predictions, queries.ids.iter(), &data.file, output);
        let texts: Vec<&str> = data.texts.iter().map(|text| text.text.as_str()).collect();
        let ceiling = retrieval_ceiling(&data.image_of_text(), &texts);
        let mut metrics = retrieval_scores_json(&scores);
        let mut figures = figures(&scores, "");
        if let Some(ceiling) = &ceiling {
            let ceiling_json = retrieval_scores_json(ceiling);
            metrics.insert("ceiling".to_owned(), Value::Object(ceiling_json));
            figures.extend(self::figures(ceiling, "ceiling of equal texts, "));
        }
        figures[0].published = Some(format!("{PUBLISHED:.2}"));
        let measured = Measured {
            title: "Image–text retrieval".into(),
            dataset: data.file.clone(),
            items: ranked.len(),
            wanted: part.count(queries.ids.len()),
            figures,
            published_for: PUBLISHED_FOR,
            cases: cases.collect(),
            official: predictions.official(
                ResultFields::RANKED,
                ranked.iter().map(|(index, ..)| &queries.ids[*index]),
            ),
            decimals: 2,
            metrics,
        };
        Ok(finish(&args.out, part, settings, measured, output)?.and(all_known))
    }
}

fn figures(scores: &RetrievalScores, of: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (name, recall) in [
        ("image to text", &scores.image_to_text),
        ("text to image", &scores.text_to_image),
    ] {
        let at = RECALL_AT
            .iter()
            .map(|k| format!("{of}{name}, Recall@{k}"))
            .zip(recall.recall);
        let all = at.chain([(format!("{of}{name}, mean"), recall.mean)]);
        figures.extend(all.map(|(name, value)| Figure {
            name,
            value: format!("{value:.2}"),
            published: None,
        }));
    }
    figures
}
