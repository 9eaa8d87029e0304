//! Explanations as one page: everything is in the file, and all but the large picture works without
//! scripts.

use image::ImageResult;

use crate::cli::shared::page::{data_url, escape, jpeg};

use super::heat::{Heat, above_mean, shrink};
use super::{Page, Part};

/// Longer side of the picture in the page, in pixels.
const PICTURE: u32 = 640;

/// Everything before the first image.
pub const HEAD: &str = include_str!("head.html");

/// Everything after the last.
pub const TAIL: &str = "</main>\n</body>\n</html>\n";

/// The section of the page for one image, the `number`-th.
pub fn section(page: &Page<'_>, number: usize) -> ImageResult<String> {
    let picture = shrink(page.image, PICTURE);
    let frame = Frame {
        number,
        shape: format!("{} / {}", picture.width(), picture.height()),
    };
    let mut html = format!(
        "<section>\n<style>.p{number}{{background-image:url({})}}</style>\n<h2>{}</h2>\n",
        data_url("image/jpeg", &jpeg(&picture, 90)?),
        escape(page.name)
    );
    for part in page.parts {
        html.push_str("<div class=part>\n");
        overview(&mut html, part, &frame)?;
        by_word(&mut html, part, &frame)?;
        by_query(&mut html, part, &frame)?;
        html.push_str("</div>\n");
    }
    html.push_str("</section>\n");
    Ok(html)
}

/// The texts with a button for each word, the image, and the map that the buttons change.
fn overview(html: &mut String, part: &Part, frame: &Frame) -> ImageResult<()> {
    for (title, words) in part.texts() {
        html.push_str(&format!("<p class=text>{}</p>\n", escape(title)));
        if words.is_empty() {
            continue;
        }
        html.push_str("<p class=words><button type=button data-map=mean>all queries</button>");
        for word in words {
            let word = escape(&word.text);
            html.push_str(&format!("<button type=button>{word}</button>"));
        }
        html.push_str("</p>\n");
    }
    let mean = Heat::new(part.explanation.grid, &part.explanation.mean());
    html.push_str(&format!(
        "<div class=large>\n<figure>{}<figcaption>the image</figcaption></figure>\n",
        frame.picture("")
    ));
    html.push_str(&frame.figure("show", "all queries", "", &mean)?);
    html.push_str("</div>\n");
    Ok(())
}

fn by_word(html: &mut String, part: &Part, frame: &Frame) -> ImageResult<()> {
    let grid = part.explanation.grid;
    for (title, words) in part.texts().filter(|(_, words)| !words.is_empty()) {
        html.push_str(&format!("<h3>By word: {}</h3>\n", escape(title)));
        html.push_str("<div class=maps>\n");
        for word in words {
            let on_image: f32 = word.queries.iter().sum();
            let note = format!("{:.0} % on the image, ", on_image * 100.0);
            let heat = Heat::new(grid, &word.patches);
            html.push_str(&frame.figure("word", &word.text, &note, &heat)?);
        }
        html.push_str("</div>\n<details>");
        html.push_str("<summary>What sets each word apart from the mean of these words</summary>");
        html.push_str("\n<div class=maps>\n");
        let maps: Vec<&[f32]> = words.iter().map(|word| word.patches.as_slice()).collect();
        for (word, map) in words.iter().zip(above_mean(&maps)) {
            html.push_str(&frame.figure("", &word.text, "", &Heat::new(grid, &map))?);
        }
        html.push_str("</div></details>\n");
    }
    Ok(())
}

fn by_query(html: &mut String, part: &Part, frame: &Frame) -> ImageResult<()> {
    html.push_str("<h3>By query</h3>\n<div class=maps>\n");
    for (index, query) in part.explanation.queries.iter().enumerate() {
        let heat = Heat::new(part.explanation.grid, query);
        html.push_str(&frame.figure("", &format!("query {}", index + 1), "", &heat)?);
    }
    html.push_str("</div>\n");
    Ok(())
}

/// The picture that all maps of a section lie over; its bytes are in the page once.
struct Frame {
    number: usize,
    /// `width / height`
    shape: String,
}

impl Frame {
    fn picture(&self, inside: &str) -> String {
        format!(
            "<div class=\"p p{}\" style=\"aspect-ratio:{}\">{inside}</div>",
            self.number, self.shape
        )
    }

    fn figure(&self, class: &str, label: &str, note: &str, heat: &Heat) -> ImageResult<String> {
        let map = format!(
            "<img alt=\"\" src=\"{}\">",
            data_url("image/png", &heat.to_png()?)
        );
        Ok(format!(
            "<figure class=\"{class}\">{}<figcaption><b>{}</b> <small>{note}peak {:.1} × even</small></figcaption></figure>\n",
            self.picture(&map),
            escape(label),
            heat.peak
        ))
    }
}
