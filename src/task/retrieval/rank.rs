//! The two-stage search of LAVIS and mmpretrain: ITC over everything, then ITM over the best of it.

use crate::Error;
use crate::schedule::{Hit, SearchDirection};

use super::{Gallery, PairScore, Retriever, TextFeatures};

/// What is searched for, and among what.
pub use crate::schedule::SearchDirection as Direction;

/// Finds a query, and images whose tokens are in memory at once, unless asked otherwise.
const DEFAULT_TOP_K: usize = 128;

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrieveOptions {
    /// Texts for images, or images for texts.
    pub direction: Direction,
    /// Finds a query: at most all there are and [`crate::kernels::MAX_KEPT`].
    pub top_k: usize,
    /// Whether the matching head ranks what the contrastive scores found.
    pub rerank: bool,
    /// Images at a time; `None` chooses.
    pub batch_size: Option<usize>,
}

impl Default for RetrieveOptions {
    fn default() -> Self {
        Self {
            direction: Direction::ImageToText,
            top_k: DEFAULT_TOP_K,
            rerank: true,
            batch_size: None,
        }
    }
}

/// A find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieved {
    /// Number of the text (or image) that was found.
    pub item: usize,
    /// What it is ranked by: the matching head's logit of "match" plus `itc` (LAVIS), or `itc` alone without re-ranking.
    pub score: f32,
    /// The greatest cosine of a query and the text.
    pub itc: f32,
    /// Probability of a match; `None` without re-ranking.
    pub itm: Option<f32>,
}

impl Retriever {
    /// For each image of the gallery its best texts, or for each text its best images, the best first. `progress` hears
    /// of the pairs matched so far and of all.
    ///
    /// # Errors
    /// An index or image that can no longer be read, no room on the device, or a failing device.
    pub async fn retrieve(
        &mut self,
        gallery: &mut Gallery,
        texts: &[TextFeatures],
        options: &RetrieveOptions,
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<Vec<Vec<Retrieved>>, Error> {
        let hits = {
            let images: Vec<&[f32]> = (0..gallery.len()).map(|i| gallery.features(i)).collect();
            let texts: Vec<&[f32]> = texts.iter().map(|text| &*text.features).collect();
            self.matcher
                .search(&images, &texts, options.direction, options.top_k)
                .await?
        };
        let mut found: Vec<Vec<Retrieved>> = hits
            .iter()
            .map(|hits| hits.iter().map(by_contrast).collect())
            .collect();
        if !options.rerank {
            return Ok(found);
        }
        let pairs = Pair::all(&hits, options.direction);
        let batch_size = self.batch_size(options.batch_size);
        let mut done = 0;
        // A few images with all of their pairs at a time: their tokens are large.
        let groups: Vec<&[Pair]> = pairs.chunk_by(|a, b| a.image == b.image).collect();
        for groups in groups.chunks(batch_size) {
            let images: Vec<usize> = groups.iter().map(|group| group[0].image).collect();
            let tokens = gallery.tokens(self, &images).await?;
            let batch: Vec<&Pair> = groups.iter().copied().flatten().collect();
            let ids: Vec<(usize, &[u32])> = groups
                .iter()
                .enumerate()
                .flat_map(|(image, group)| group.iter().map(move |pair| (image, pair.text)))
                .map(|(image, text)| (image, &*texts[text].tokens))
                .collect();
            let logits = self.matcher.match_pairs(&tokens, &ids).await?;
            for (pair, logits) in batch.into_iter().zip(logits) {
                let find = &mut found[pair.query][pair.place];
                find.itm = Some(PairScore::new(logits, find.itc).itm);
                find.score = logits[1] + find.itc;
            }
            done += ids.len();
            progress(done, pairs.len());
        }
        for finds in &mut found {
            // Equal scores keep the order of the first stage.
            finds.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        Ok(found)
    }
}

fn by_contrast(hit: &Hit) -> Retrieved {
    Retrieved {
        item: hit.index,
        score: hit.itc,
        itc: hit.itc,
        itm: None,
    }
}

/// An image and a text to match, and where the score belongs.
#[derive(Debug, Clone, Copy)]
struct Pair {
    image: usize,
    text: usize,
    query: usize,
    place: usize,
}

impl Pair {
    /// All that was found, sorted by image.
    fn all(hits: &[Vec<Hit>], direction: SearchDirection) -> Vec<Self> {
        let mut pairs = Vec::with_capacity(hits.iter().map(Vec::len).sum());
        for (query, hits) in hits.iter().enumerate() {
            for (place, hit) in hits.iter().enumerate() {
                let (image, text) = match direction {
                    SearchDirection::ImageToText => (query, hit.index),
                    SearchDirection::TextToImage => (hit.index, query),
                };
                pairs.push(Self {
                    image,
                    text,
                    query,
                    place,
                });
            }
        }
        pairs.sort_by_key(|pair| pair.image);
        pairs
    }
}
