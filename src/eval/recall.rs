//! Recall at 1, 5 and 10 of image–text retrieval, as LAVIS computes it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ScoreMatrix;

/// The ranks at which recall is measured.
pub const RECALL_AT: [usize; 3] = [1, 5, 10];

/// Recall of one direction, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DirectionRecall {
    /// At [`RECALL_AT`].
    pub recall: [f64; 3],
    /// Their mean.
    pub mean: f64,
}

/// Recall of both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrievalScores {
    /// Image to text: the best place of any of the image's texts counts.
    pub image_to_text: DirectionRecall,
    /// Text to image.
    pub text_to_image: DirectionRecall,
    /// Mean of both means.
    pub mean: f64,
    /// Place of each image's best text, from 0.
    pub image_ranks: Vec<usize>,
    /// Place of each text's image, from 0.
    pub text_ranks: Vec<usize>,
}

/// Recall from scores of all pairs, `image_of_text[t]` being the image that text t belongs to.
/// Re-ranking scores each direction by itself; then `text_to_image` (`[images, texts]` too) holds
/// the other direction's scores.
///
/// Of equal scores the higher index comes first, as in LAVIS's reversed sort. `None` where sizes do
/// not fit, or an image has no text.
#[must_use]
pub fn score_retrieval(
    scores: &ScoreMatrix,
    text_to_image: Option<&ScoreMatrix>,
    image_of_text: &[usize],
) -> Option<RetrievalScores> {
    let by_text = text_to_image.unwrap_or(scores);
    let size = (scores.images(), image_of_text.len());
    let fits = |matrix: &ScoreMatrix| (matrix.images(), matrix.texts()) == size;
    if !fits(scores) || !fits(by_text) || image_of_text.iter().any(|&image| image >= size.0) {
        return None;
    }
    let mut image_ranks = vec![usize::MAX; size.0];
    let mut text_ranks = Vec::with_capacity(size.1);
    for (text, &image) in image_of_text.iter().enumerate() {
        let texts = (0..size.1).map(|text| scores.get(image, text));
        image_ranks[image] = image_ranks[image].min(rank(texts, text, scores.get(image, text)));
        let images = (0..size.0).map(|image| by_text.get(image, text));
        text_ranks.push(rank(images, image, by_text.get(image, text)));
    }
    if image_ranks.contains(&usize::MAX) || text_ranks.is_empty() {
        return None;
    }
    Some(RetrievalScores::from_ranks(image_ranks, text_ranks))
}

impl RetrievalScores {
    /// Recall from the place of each image's best text and of each text's image, from 0;
    /// `usize::MAX` where it was not found at all. A direction without queries has recall 0.
    #[must_use]
    pub fn from_ranks(image_ranks: Vec<usize>, text_ranks: Vec<usize>) -> Self {
        let (image_to_text, text_to_image) = (recall(&image_ranks), recall(&text_ranks));
        Self {
            image_to_text,
            text_to_image,
            mean: (image_to_text.mean + text_to_image.mean) / 2.0,
            image_ranks,
            text_ranks,
        }
    }
}

/// What a model can reach at most that gives equal texts equal scores, where images share texts;
/// `None` where none do.
///
/// Such a model puts all texts first that read like one of the image's own, in a random order, and
/// all images first that have the text: the figures are the mean over these orders. `texts[t]`
/// belongs to image `image_of_text[t]`.
#[must_use]
pub fn retrieval_ceiling(image_of_text: &[usize], texts: &[&str]) -> Option<RetrievalScores> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (text, words) in texts.iter().enumerate() {
        places.entry(words).or_default().push(text);
    }
    let images_with: HashMap<&str, usize> = places
        .iter()
        .map(|(words, places)| {
            let images: HashSet<usize> = places.iter().map(|&text| image_of_text[text]).collect();
            (*words, images.len())
        })
        .collect();
    if images_with.values().all(|&images| images == 1) {
        return None;
    }
    let mut own: BTreeMap<usize, HashSet<&str>> = BTreeMap::new();
    for (&image, words) in image_of_text.iter().zip(texts) {
        own.entry(image).or_default().insert(words);
    }
    let image_hits = own.iter().map(|(&image, words)| {
        let alike = words.iter().flat_map(|words| &places[words]);
        let (mine, all) = alike.fold((0, 0), |(mine, all), &text| {
            (mine + usize::from(image_of_text[text] == image), all + 1)
        });
        RECALL_AT.map(|k| 1.0 - all_others(all, mine, k))
    });
    let text_hits = texts.iter().map(|words| {
        let images = images_with[words];
        RECALL_AT.map(|k| (k as f64 / images as f64).min(1.0))
    });
    let (image_to_text, text_to_image) = (mean_recall(image_hits), mean_recall(text_hits));
    Some(RetrievalScores {
        image_to_text,
        text_to_image,
        mean: (image_to_text.mean + text_to_image.mean) / 2.0,
        image_ranks: Vec::new(),
        text_ranks: Vec::new(),
    })
}

/// Probability that the first k of `all` in random order hold none of `mine`.
fn all_others(all: usize, mine: usize, k: usize) -> f64 {
    let others = all - mine;
    (0..k)
        .map(|drawn| {
            others.saturating_sub(drawn) as f64 / (all.saturating_sub(drawn)).max(1) as f64
        })
        .product()
}

/// Recall in percent from each query's probability of a hit at [`RECALL_AT`].
fn mean_recall(hits: impl Iterator<Item = [f64; 3]>) -> DirectionRecall {
    let (mut sums, mut count) = ([0.0; 3], 0);
    for hit in hits {
        (0..3).for_each(|at| sums[at] += hit[at]);
        count += 1;
    }
    let recall = sums.map(|sum: f64| 100.0 * sum / f64::from(count.max(1)));
    DirectionRecall {
        recall,
        mean: recall.iter().sum::<f64>() / recall.len() as f64,
    }
}

/// How many candidates come before candidate `index`, whose score is `own`.
fn rank(scores: impl Iterator<Item = f32>, index: usize, own: f32) -> usize {
    scores
        .enumerate()
        .filter(|&(other, score)| score > own || score == own && other > index)
        .count()
}

fn recall(ranks: &[usize]) -> DirectionRecall {
    let recall = RECALL_AT.map(|k| {
        let hits = ranks.iter().filter(|&&rank| rank < k).count();
        100.0 * hits as f64 / ranks.len().max(1) as f64
    });
    DirectionRecall {
        recall,
        mean: recall.iter().sum::<f64>() / recall.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_ties_as_a_reversed_sort_does() {
        // Two images, three texts: texts 0 and 1 are image 0's.
        let scores = ScoreMatrix::new(2, 3, vec![0.1, 0.9, 0.9, 0.5, 0.9, 0.2]).expect("a matrix");
        let result = score_retrieval(&scores, None, &[0, 0, 1]).expect("scores");
        assert_eq!(result.image_ranks, [1, 2]);
        assert_eq!(result.text_ranks, [1, 1, 1]);
        assert_eq!(result.image_to_text.recall, [0.0, 100.0, 100.0]);
        assert!((result.text_to_image.mean - 200.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn equal_texts_set_a_ceiling() {
        assert_eq!(retrieval_ceiling(&[0, 0, 1], &["a", "a", "b"]), None);
        // Images 0 and 1 share "a"; image 1 has "b" of its own, image 2 "c".
        let ceiling = retrieval_ceiling(&[0, 1, 1, 2], &["a", "a", "b", "c"]).expect("shared");
        let [image, text] = [&ceiling.image_to_text, &ceiling.text_to_image];
        // Image 0: one of two; image 1: two of three; image 2: its own.
        let expected = 100.0 * (0.5 + 2.0 / 3.0 + 1.0) / 3.0;
        assert!((image.recall[0] - expected).abs() < 1e-12, "{image:?}");
        assert_eq!(image.recall[1..], [100.0, 100.0]);
        assert_eq!(text.recall, [75.0, 100.0, 100.0]);
    }

    #[test]
    fn sizes_that_do_not_fit_give_nothing() {
        let scores = ScoreMatrix::new(2, 2, vec![0.0; 4]).expect("a matrix");
        assert!(score_retrieval(&scores, None, &[0, 1, 1]).is_none());
        assert!(score_retrieval(&scores, None, &[0, 2]).is_none());
        assert!(score_retrieval(&scores, None, &[0, 0]).is_none()); // image 1 has no text
    }
}
