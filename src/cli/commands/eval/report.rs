//! A run on one page: figures beside the published ones, and what was predicted for which picture,
//! the worst first.

use std::fmt::Write;

use crate::cli::shared::page::{data_url, escape, jpeg};
use crate::image::{Rgb8Image, resize_bicubic};

/// Longest side of a picture in the report.
const THUMBNAIL: u32 = 192;

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// What was measured, as it is to be shown.
    pub value: String,
    /// What was published, where there is such a figure.
    pub published: Option<String>,
}

/// An item as the report shows it: a picture with what was predicted and what is true.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportItem {
    /// The picture as a JPEG; `None` where it could not be read.
    pub thumbnail: Option<Vec<u8>>,
    /// The item's name.
    pub name: String,
    /// What was asked, if anything.
    pub question: Option<String>,
    /// The prediction.
    pub prediction: String,
    /// What people said.
    pub truth: Vec<String>,
    /// The item's own score, as it is to be shown.
    pub score: String,
}

/// The page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Its heading.
    pub title: String,
    /// How the run was made: names and values.
    pub settings: Vec<(String, String)>,
    /// The figures.
    pub figures: Vec<Figure>,
    /// What the published figures are of.
    pub published_for: String,
    /// How many items were measured.
    pub count: usize,
    /// Those that are shown, the worst first.
    pub items: Vec<ReportItem>,
}

impl Report {
    /// The page as HTML that needs no other file.
    #[must_use]
    pub fn html(&self) -> String {
        let mut page = String::from(HEAD);
        let title = escape(&self.title);
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "<title>{title}</title></head><body><h1>{title}</h1><p>"
        );
        for (name, value) in &self.settings {
            let _ = write!(page, "{} <b>{}</b> &ensp; ", escape(name), escape(value));
        }
        let _ = write!(
            page,
            "</p><table><tr><th>{} items</th><th>here</th><th>published</th></tr>",
            self.count
        );
        for figure in &self.figures {
            let published = figure.published.as_deref().map_or_else(String::new, escape);
            let (name, value) = (escape(&figure.name), escape(&figure.value));
            let _ = write!(
                page,
                "<tr><td>{name}</td><td>{value}</td><td>{published}</td></tr>"
            );
        }
        let _ = write!(
            page,
            "</table><p class=note>Published: {}</p>",
            escape(&self.published_for)
        );
        let _ = write!(
            page,
            "<h2>{} of {} items, the worst first</h2><main>",
            self.items.len(),
            self.count
        );
        self.items.iter().for_each(|item| item.write(&mut page));
        page.push_str("</main></body></html>\n");
        page
    }
}

impl ReportItem {
    fn write(&self, page: &mut String) {
        page.push_str("<article>");
        match &self.thumbnail {
            Some(jpeg) => {
                let _ = write!(
                    page,
                    "<img alt=\"\" src=\"{}\">",
                    data_url("image/jpeg", jpeg)
                );
            }
            None => page.push_str("<p class=note>picture not found</p>"),
        }
        if let Some(question) = &self.question {
            let _ = write!(page, "<p>{}</p>", escape(question));
        }
        let _ = write!(page, "<p><b>{}</b></p><ul>", escape(&self.prediction));
        for truth in &self.truth {
            let _ = write!(page, "<li>{}</li>", escape(truth));
        }
        let _ = write!(
            page,
            "</ul><p class=note>{} · {}</p></article>",
            escape(&self.name),
            escape(&self.score)
        );
    }
}

/// A small JPEG of a picture; `None` if it cannot be made.
#[must_use]
pub fn thumbnail(picture: &Rgb8Image) -> Option<Vec<u8>> {
    let longest = picture.width().max(picture.height());
    let side = |length: u32| {
        let scaled = u64::from(length) * u64::from(THUMBNAIL.min(longest)) / u64::from(longest);
        u32::try_from(scaled.max(1)).unwrap_or(1)
    };
    let small = resize_bicubic(picture, side(picture.width()), side(picture.height()));
    jpeg(&small, 85).ok()
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><style>\
    body{font:15px/1.4 sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#222}\
    table{border-collapse:collapse}td,th{padding:.2em 1em;text-align:right;border-bottom:1px solid #ddd}\
    td:first-child,th:first-child{text-align:left}.note{color:#777;font-size:13px}\
    main{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1em}\
    article{border:1px solid #ddd;padding:.6em;overflow-wrap:anywhere}article p,article ul{margin:.3em 0}\
    article ul{padding-left:1.2em;color:#555;font-size:13px}img{max-width:100%}</style>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_the_page() {
        let picture = Rgb8Image::new(400, 3, vec![9; 3600]).expect("a picture");
        let item = ReportItem {
            thumbnail: thumbnail(&picture),
            prediction: "<script>alert(\"x\")</script> & more".into(),
            ..ReportItem::default()
        };
        let page = Report {
            items: vec![item, ReportItem::default()],
            ..Report::default()
        }
        .html();
        assert!(
            !page.contains("<script")
                && page.contains("&lt;script&gt;")
                && page.contains("data:image/jpeg;base64,/9j/")
        );
    }
}
