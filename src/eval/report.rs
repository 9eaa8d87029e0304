//! A run on one page: figures beside the published ones, and what was predicted for which picture, the worst first.

use std::fmt::Write;

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

/// A picture with what was predicted and what is true.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Case {
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
    pub items: usize,
    /// The cases shown, the worst first.
    pub cases: Vec<Case>,
}

impl Report {
    /// The page as HTML that needs no other file.
    #[must_use]
    pub fn html(&self) -> String {
        let mut page = String::from(HEAD);
        let title = escaped(&self.title);
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "<title>{title}</title></head><body><h1>{title}</h1><p>"
        );
        for (name, value) in &self.settings {
            let _ = write!(page, "{} <b>{}</b> &ensp; ", escaped(name), escaped(value));
        }
        let _ = write!(
            page,
            "</p><table><tr><th>{} items</th><th>here</th><th>published</th></tr>",
            self.items
        );
        for figure in &self.figures {
            let published = figure
                .published
                .as_deref()
                .map_or_else(String::new, escaped);
            let (name, value) = (escaped(&figure.name), escaped(&figure.value));
            let _ = write!(
                page,
                "<tr><td>{name}</td><td>{value}</td><td>{published}</td></tr>"
            );
        }
        let _ = write!(
            page,
            "</table><p class=note>Published: {}</p>",
            escaped(&self.published_for)
        );
        let _ = write!(
            page,
            "<h2>{} of {} items, the worst first</h2><main>",
            self.cases.len(),
            self.items
        );
        self.cases.iter().for_each(|case| case.write(&mut page));
        page.push_str("</main></body></html>\n");
        page
    }
}

impl Case {
    fn write(&self, page: &mut String) {
        page.push_str("<article>");
        match &self.thumbnail {
            Some(jpeg) => {
                let _ = write!(
                    page,
                    "<img alt=\"\" src=\"data:image/jpeg;base64,{}\">",
                    base64(jpeg)
                );
            }
            None => page.push_str("<p class=note>picture not found</p>"),
        }
        if let Some(question) = &self.question {
            let _ = write!(page, "<p>{}</p>", escaped(question));
        }
        let _ = write!(page, "<p><b>{}</b></p><ul>", escaped(&self.prediction));
        for truth in &self.truth {
            let _ = write!(page, "<li>{}</li>", escaped(truth));
        }
        let _ = write!(
            page,
            "</ul><p class=note>{} · {}</p></article>",
            escaped(&self.name),
            escaped(&self.score)
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
    let mut jpeg = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 85);
    encoder
        .encode(
            small.data(),
            small.width(),
            small.height(),
            image::ExtendedColorType::Rgb8,
        )
        .ok()?;
    Some(jpeg)
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><style>\
    body{font:15px/1.4 sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#222}\
    table{border-collapse:collapse}td,th{padding:.2em 1em;text-align:right;border-bottom:1px solid #ddd}\
    td:first-child,th:first-child{text-align:left}.note{color:#777;font-size:13px}\
    main{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1em}\
    article{border:1px solid #ddd;padding:.6em;overflow-wrap:anywhere}article p,article ul{margin:.3em 0}\
    article ul{padding-left:1.2em;color:#555;font-size:13px}img{max-width:100%}</style>";

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

/// RFC 4648's base 64.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            out.push(if digit <= chunk.len() {
                char::from(DIGITS[index as usize])
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_rfc_has_it() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn texts_cannot_break_the_page() {
        let picture = Rgb8Image::new(400, 3, vec![9; 3600]).expect("a picture");
        let case = Case {
            thumbnail: thumbnail(&picture),
            prediction: "<script>alert(\"x\")</script> & more".into(),
            ..Case::default()
        };
        let page = Report {
            cases: vec![case, Case::default()],
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
