//! `blip2-wgpu eval retrieval`: every image asks for its texts, every text for its image.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Error;
use crate::cli::shared::Shared;
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::scores::retrieval_scores_json;
use crate::eval::{
    CaptionData, EvalError, Id, ListedImage, RECALL_AT, RetrievalScores, retrieval_ceiling,
};
use crate::task::{
    Direction, Gallery, GalleryEvent, GalleryImage, GallerySource, RetrieveOptions, Retrieved,
    Retriever, TextFeatures, TextUse,
};

use super::args::{PartArgs, RankingArgs, RetrievalArgs, TruthArgs};
use super::caption;
use super::evaluation::{Dataset, Evaluation, Measured, Outcome, owned};
use super::predictions::{Predictions, ResultFields};
use super::report::{Figure, ReportItem};

/// mmpretrain's figure for blip2 on COCO.
const PUBLISHED: f64 = 85.40;
const PUBLISHED_FOR: &str = "COCO retrieval, image to text, as mmpretrain reports it";

/// Queries between two writes to the disk.
const QUERIES_AT_A_TIME: usize = 256;
/// Finds of a query that are kept.
const KEPT: usize = 10;

/// Ranks for the queries that are not ranked yet, then measures.
pub async fn run(shared: &Shared, args: &RetrievalArgs, output: &Output) -> Result<Outcome, Error> {
    shared.check()?;
    let dataset = RetrievalDataset::read(&args.truth, args.limit)?;
    args.truth
        .split
        .warn_if_idle(&args.truth.annotations, output);
    let RetrievalDataset { data, ids } = &dataset;
    check_texts(data)?;
    let ranking = &args.ranking;
    let size = ranking.encode.image_size();
    let whole = PartArgs {
        limit: args.limit,
        shard: None,
    };
    let part = PartArgs {
        limit: None, // the data is cut to it
        shard: args.shard,
    };
    let mut evaluation = Evaluation::open::<RetrievalDataset>(
        shared,
        (&args.data, part),
        &[("annotations", Some(&args.truth.annotations))],
        size,
        // With fewer candidates the task is another.
        whole.with_limit(given(ranking)),
        output,
    )?;
    evaluation.folder.note(caption::paths_of(data));
    let mut all_well = true;
    let mut files = Vec::new();
    for (index, image) in data.images.iter().enumerate() {
        match evaluation.folder.find(&image.paths, &image.id, &data.file) {
            Ok(file) => files.push((index, file)),
            Err(error) => all_well = output.fail(&error),
        }
    }
    let wanted: Vec<usize> = (0..ids.len())
        .filter(|&index| evaluation.lacks(index, &ids[index]))
        .collect();
    if !wanted.is_empty() && !files.is_empty() {
        let mut model = shared
            .open_retriever(size, ranking.encode.batch_size.0, output)
            .await?;
        let mut ranker = Ranker {
            model: &mut model,
            data,
            ids,
            ranking,
            index: part.file(&args.data.out, "images", "index"),
            by_name: HashMap::new(),
            output,
        };
        let predictions = &mut evaluation.predictions;
        all_well &= ranker.run(&files, &wanted, predictions).await?;
        model.gpu().save_pipelines();
    }
    Ok(evaluation.finish(&dataset)?.and(all_well))
}

fn given(ranking: &RankingArgs) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("--topk".to_owned(), ranking.topk.to_string()),
        (
            "--preset".to_owned(),
            format!("{:?}", ranking.encode.preset).to_lowercase(),
        ),
        ("--itc-only".to_owned(), ranking.itc_only.to_string()),
    ])
}

/// Keeps the first images and their texts.
fn cut(data: &mut CaptionData, limit: Option<usize>) {
    if let Some(limit) = limit {
        data.images.truncate(limit);
        data.texts.retain(|text| text.image < limit);
    }
}

/// Each image must have a text to be found by, and no text may be empty.
fn check_texts(data: &CaptionData) -> Result<(), EvalError> {
    let wrong = |image: &ListedImage, problem: &str| {
        EvalError::item(&data.file, format!("image {}", image.id), problem)
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

/// Images and texts that ask for each other.
pub struct RetrievalDataset {
    data: CaptionData,
    /// What predictions call the queries: the images', then the texts'.
    ids: Vec<Id>,
}

impl Dataset for RetrievalDataset {
    type Truth = TruthArgs;
    const TASK: &'static str = "retrieval";
    const FIELDS: ResultFields = ResultFields::RANKED;
    const CUT: bool = true;

    fn read(truth: &TruthArgs, limit: Option<usize>) -> Result<Self, Error> {
        let mut data = CaptionData::read(&truth.annotations, truth.split.name())?;
        cut(&mut data, limit);
        let images = data.images.iter();
        let images = images.map(|image| Id::Text(format!("image {}", image.id)));
        let texts = (0..data.texts.len()).map(|index| Id::Text(format!("text {index}")));
        Ok(Self {
            ids: images.chain(texts).collect(),
            data,
        })
    }

    fn file(&self) -> &Path {
        &self.data.file
    }

    fn ids(&self) -> Vec<&Id> {
        self.ids.iter().collect()
    }

    /// Recall of the queries of the part that are ranked.
    fn measure(&self, evaluation: &Evaluation<'_>) -> Measured {
        let Self { data, ids } = self;
        let (mut ranks, mut ranked) = ([Vec::new(), Vec::new()], Vec::new());
        for (index, id) in ids.iter().enumerate() {
            let found = evaluation.predictions.get(id);
            if let (true, Some(found)) = (evaluation.part.has(index), found) {
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
        images.sort_by_key(|(_, rank, _)| Reverse(*rank));
        let shown = images.into_iter().take(evaluation.args.report_cases);
        let shown = shown.map(|&(index, rank, found)| {
            let first = found["best"][0][0].as_u64();
            let first = first.and_then(|text| data.texts.get(text as usize));
            ReportItem {
                prediction: first.map_or_else(String::new, |text| text.text.clone()),
                truth: owned(&captions[index]),
                score: match rank {
                    usize::MAX => "none of its texts among the candidates".into(),
                    _ => format!("its best text at place {}", rank + 1),
                },
                ..evaluation.report_item(data, index)
            }
        });
        let all_known = evaluation.report_unknown(self);
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
        let of_the_part = ranked.iter().map(|(index, ..)| &ids[*index]);
        Measured {
            title: "Image–text retrieval",
            items: ranked.len(),
            figures,
            published_for: PUBLISHED_FOR,
            shown: shown.collect(),
            official: evaluation.predictions.official(Self::FIELDS, of_the_part),
            decimals: 2,
            metrics,
            all_known,
        }
    }
}

/// Runs queries.
struct Ranker<'a> {
    model: &'a mut Retriever,
    data: &'a CaptionData,
    /// What predictions call the queries.
    ids: &'a [Id],
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
                    self.ids[image].clone(),
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
                (self.ids[count + text].clone(), record(rank, items))
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
        let batch_size = self.model.batch_size(self.ranking.encode.batch_size.0);
        let policy = self.ranking.encode.preset.decode_policy();
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
                    .encode_texts(&texts, self.ranking.encode.preset, TextUse::Retrieve)
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
            batch_size: self.ranking.encode.batch_size.0,
        };
        self.model
            .retrieve(gallery, texts, &options, &mut |_, _| {})
            .await
    }
}

/// A query's finds as they are kept: the place of the first true one among all candidates, and the
/// best few.
fn record(rank: Option<usize>, finds: impl Iterator<Item = (Value, f32)>) -> Value {
    let best = finds
        .take(KEPT)
        .map(|(item, score)| json!([item, digits(score)]));
    json!({ "rank": rank, "best": best.collect::<Vec<_>>() })
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
