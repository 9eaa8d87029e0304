//! An explanation as one picture: the image, its mean map beside it, a strip of the words below.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageResult};

use crate::image::Rgb8Image;

use super::heat::{Heat, fit};
use super::{Page, Part, font};

/// Pixels of a letter's dot, of a letter across, and of a line of text.
const DOT: usize = 2;
const LETTER: usize = DOT * font::WIDTH;
const LINE: usize = DOT * font::HEIGHT + 4;
/// Longer side of the two large pictures, and of the words', in pixels.
const LARGE: u32 = 300;
const SMALL: u32 = 96;
/// Between and around pictures.
const GAP: usize = 8;
/// Words a row.
const ACROSS: usize = 6;
const WIDTH: usize = ACROSS * (SMALL as usize + GAP) + GAP;

/// Lines of at most `most` characters, broken between words where that can be.
fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let characters: Vec<char> = word.chars().collect();
        for (index, part) in characters.chunks(most).enumerate() {
            let line = lines.last_mut().filter(|line| {
                index == 0
                    && line.chars().count() + usize::from(!line.is_empty()) + part.len() <= most
            });
            match line {
                Some(line) => {
                    if !line.is_empty() {
                        line.push(' ');
                    }
                    line.extend(part);
                }
                None => lines.push(part.iter().collect()),
            }
        }
    }
    lines
}

/// White paper of a fixed width that grows downwards.
#[derive(Debug, Default)]
pub struct Canvas {
    /// `[height, WIDTH, 3]`
    pixels: Vec<u8>,
}

impl Canvas {
    /// Draws what there is to show of an image, below what is there.
    pub fn draw(&mut self, page: &Page<'_>) {
        let (large, small) = (fit(page.image, LARGE), fit(page.image, SMALL));
        for part in page.parts {
            self.draw_part(part, &large, &small);
        }
    }

    fn height(&self) -> usize {
        self.pixels.len() / (WIDTH * 3)
    }

    /// The pixel at a place that exists, the paper grown to hold it.
    fn pixel(&mut self, x: usize, y: usize) -> &mut [u8] {
        if y >= self.height() {
            self.pixels.resize((y + 1) * WIDTH * 3, 255);
        }
        &mut self.pixels[(y * WIDTH + x) * 3..][..3]
    }

    /// The picture, where all queries look, and each text with its words.
    fn draw_part(&mut self, part: &Part, large: &Rgb8Image, small: &Rgb8Image) {
        let grid = part.explanation.grid;
        let mean = Heat::new(grid, &part.explanation.mean());
        let top = self.height() + GAP;
        self.paste(GAP, top, large, large.data());
        let right = WIDTH - GAP - large.width() as usize;
        self.paste(right, top, large, &mean.over(large));
        for (title, words) in part.texts() {
            for line in wrap(title, (WIDTH - 2 * GAP) / LETTER) {
                self.write(GAP, self.height() + GAP, &line);
            }
            for row in words.chunks(ACROSS) {
                let y = self.height() + GAP;
                for (column, word) in row.iter().enumerate() {
                    let x = GAP + column * (SMALL as usize + GAP);
                    let most = SMALL as usize / LETTER;
                    let label: String = word.text.chars().take(most).collect();
                    self.write(x, y, &label);
                    let heat = Heat::new(grid, &word.patches);
                    self.paste(x, y + LINE, small, &heat.over(small));
                }
            }
        }
    }

    /// Puts `pixels`, of the size of `like`, at a place.
    fn paste(&mut self, x: usize, y: usize, like: &Rgb8Image, pixels: &[u8]) {
        let width = like.width() as usize;
        for (index, pixel) in pixels.chunks_exact(3).enumerate() {
            self.pixel(x + index % width, y + index / width)
                .copy_from_slice(pixel);
        }
    }

    /// Writes one line.
    fn write(&mut self, x: usize, y: usize, text: &str) {
        self.pixel(x, y + DOT * font::HEIGHT - 1); // a line is as high whatever its letters
        for (index, letter) in text.chars().enumerate() {
            for (across, down) in font::dots(letter) {
                for part in 0..DOT * DOT {
                    let x = x + index * LETTER + DOT * across + part % DOT;
                    if x < WIDTH {
                        self.pixel(x, y + DOT * down + part / DOT).fill(0);
                    }
                }
            }
        }
    }

    /// As a PNG file.
    pub fn encode(mut self) -> ImageResult<Vec<u8>> {
        let bottom = self.height() + GAP;
        self.pixel(0, bottom - 1);
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(
            &self.pixels,
            WIDTH as u32,
            bottom as u32,
            ExtendedColorType::Rgb8,
        )?;
        Ok(png)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(
            wrap("a white star and a ring", 8),
            ["a white", "star and", "a ring"]
        );
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn text_is_ink_on_paper_and_stays_on_it() {
        let mut canvas = Canvas::default();
        canvas.write(WIDTH - 4, 3, "W\u{1F431}W");
        assert!(canvas.pixels.iter().any(|&value| value < 128));
        assert_eq!(canvas.pixels.len() % (WIDTH * 3), 0);
    }
}
