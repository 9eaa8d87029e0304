//! Explanations as one page: everything is in the file, and all but the large picture works without scripts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageResult;

use super::Page;
use super::heat::{Heat, above_mean, shrink, to_jpeg};

/// Longer side of the picture in the page, in pixels.
const PICTURE: u32 = 640;

/// Everything before the first image.
pub(super) const HEAD: &str = include_str!("head.html");

/// Everything after the last.
pub(super) const TAIL: &str = "</main>\n</body>\n</html>\n";

/// The part of the page for one image, the `number`-th.
pub(super) fn section(page: &Page<'_>, number: usize) -> ImageResult<String> {
    let picture = shrink(page.image, PICTURE);
    let frame = Frame {
        number,
        shape: format!("{} / {}", picture.width(), picture.height()),
    };
    let grid = page.explanation.grid;
    let mean = Heat::new(grid, &page.explanation.mean());
    let mut html = format!(
        "<section>\n<style>.p{number}{{background-image:url({})}}</style>\n<h2>{}</h2>\n",
        data_url("image/jpeg", &to_jpeg(&picture)?),
        escape(page.name)
    );
    for (title, words) in page.titles.iter().zip(&page.explanation.texts) {
        html.push_str(&format!(
            "<p class=text>{}</p>\n<p class=words>",
            escape(title)
        ));
        html.push_str("<button type=button data-map=mean>all queries</button>");
        for word in words {
            html.push_str(&format!(
                "<button type=button>{}</button>",
                escape(&word.text)
            ));
        }
        html.push_str("</p>\n");
    }
    html.push_str("<div class=large>\n");
    html.push_str(&format!(
        "<figure>{}<figcaption>the image</figcaption></figure>\n",
        frame.picture("")
    ));
    html.push_str(&frame.figure("show", "all queries", "", &mean)?);
    html.push_str("</div>\n");

    for (title, words) in page.titles.iter().zip(&page.explanation.texts) {
        html.push_str(&format!(
            "<h3>By word: {}</h3>\n<div class=maps>\n",
            escape(title)
        ));
        for word in words {
            let on_image: f32 = word.queries.iter().sum();
            let note = format!("{:.0} % on the image, ", on_image * 100.0);
            html.push_str(&frame.figure(
                "word",
                &word.text,
                &note,
                &Heat::new(grid, &word.patches),
            )?);
        }
        html.push_str("</div>\n<details><summary>What sets each word apart from the mean of these words</summary>\n<div class=maps>\n");
        let maps: Vec<&[f32]> = words.iter().map(|word| word.patches.as_slice()).collect();
        for (word, map) in words.iter().zip(above_mean(&maps)) {
            html.push_str(&frame.figure("", &word.text, "", &Heat::new(grid, &map))?);
        }
        html.push_str("</div></details>\n");
    }
    html.push_str("<h3>By query</h3>\n<div class=maps>\n");
    for (index, query) in page.explanation.queries.iter().enumerate() {
        html.push_str(&frame.figure(
            "",
            &format!("query {}", index + 1),
            "",
            &Heat::new(grid, query),
        )?);
    }
    html.push_str("</div>\n</section>\n");
    Ok(html)
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

fn data_url(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(bytes))
}

/// Text as it may stand between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_words_cannot_become_tags() {
        assert_eq!(
            escape("<script>\"&'</script>"),
            "&lt;script&gt;&quot;&amp;&#39;&lt;/script&gt;"
        );
    }
}
