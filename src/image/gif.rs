//! The first frame of a GIF may cover only a part of the canvas; Pillow fills the rest with the frame's
//! transparent palette entry, or with entry 0 where there is none.

use super::groups;
use super::pillow::Pixels;

/// Where the first frame lies on the canvas, and what fills the canvas around it.
#[derive(Debug, PartialEq, Eq)]
struct FirstFrame {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    fill: [u8; 3],
    fill_alpha: u8,
}

/// Fills the canvas around the first frame as Pillow does.
pub(super) fn fill_around_first_frame(file: &[u8], pixels: &mut Pixels) {
    let Some(frame) = FirstFrame::read(file) else {
        return;
    };
    let width = pixels.width as usize;
    for (index, pixel) in pixels.rgb.chunks_exact_mut(3).enumerate() {
        let (x, y) = (index % width, index / width);
        let inside = (frame.left..frame.left + frame.width).contains(&x)
            && (frame.top..frame.top + frame.height).contains(&y);
        if !inside {
            pixel.copy_from_slice(&frame.fill);
            if let Some(alpha) = &mut pixels.alpha {
                alpha[index] = frame.fill_alpha;
            }
        }
    }
}

impl FirstFrame {
    /// Walks the blocks up to the first image descriptor; `None` when the file ends before it.
    fn read(file: &[u8]) -> Option<Self> {
        const LOGICAL_SCREEN_END: usize = 13;
        let flags = *file.get(10)?;
        let mut rest = file.get(LOGICAL_SCREEN_END..)?;
        let global_palette = take_palette(flags, &mut rest)?;
        let mut transparent = None;
        loop {
            match take(&mut rest, 1)? {
                [0x21] => {
                    let label = take(&mut rest, 1)?[0];
                    let mut first = true;
                    loop {
                        let length = take(&mut rest, 1)?[0];
                        if length == 0 {
                            break;
                        }
                        let block = take(&mut rest, usize::from(length))?;
                        if let (0xF9, true, &[flags, _, _, index, ..]) = (label, first, block) {
                            transparent = (flags & 1 == 1).then_some(index).or(transparent);
                        }
                        first = false;
                    }
                }
                [0x2C] => break,
                [0x3B] => return None,
                _ => {} // stray bytes between blocks are skipped
            }
        }
        let &[l0, l1, t0, t1, w0, w1, h0, h1, flags] = take(&mut rest, 9)? else {
            return None;
        };
        let local_palette = take_palette(flags, &mut rest)?;
        let palette = local_palette.or(global_palette).unwrap_or_default();
        let index = transparent.unwrap_or(0);
        let entry = groups::<_, 3>(palette).get(usize::from(index)).copied();
        let number = |low, high| usize::from(u16::from_le_bytes([low, high]));
        Some(Self {
            left: number(l0, l1),
            top: number(t0, t1),
            width: number(w0, w1),
            height: number(h0, h1),
            fill: entry.unwrap_or_default(),
            fill_alpha: if transparent.is_some() { 0 } else { 255 },
        })
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    rest.split_off(..length)
}

/// The palette that `flags` announce, `Some(None)` when they announce none.
fn take_palette<'a>(flags: u8, rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    if flags & 0x80 == 0 {
        return Some(None);
    }
    take(rest, 3 * (2 << (flags & 7))).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 5x4 canvas with a two-colour palette and a 2x1 frame at (3, 1).
    fn gif(graphic_control: &[u8]) -> Vec<u8> {
        let header = [b"GIF89a\x05\0\x04\0\x80\0\0", &[1, 2, 3, 4, 5, 6][..]].concat();
        let frame = [0x2C, 3, 0, 1, 0, 2, 0, 1, 0, 0];
        [&header[..], graphic_control, &frame].concat()
    }

    #[test]
    fn entry_zero_fills_around_an_opaque_frame() {
        let mut pixels = Pixels::from_rgba((5, 4), &[9; 80]);
        fill_around_first_frame(&gif(&[]), &mut pixels);
        let colours = groups::<_, 3>(&pixels.rgb);
        for (index, colour) in colours.iter().enumerate() {
            let expected = if [8, 9].contains(&index) {
                [9; 3]
            } else {
                [1, 2, 3]
            };
            assert_eq!(*colour, expected, "pixel {index}");
        }
        assert_eq!(
            pixels.alpha.unwrap_or_default()[..9],
            [255, 255, 255, 255, 255, 255, 255, 255, 9]
        );
    }

    #[test]
    fn the_transparent_entry_fills_around_its_frame() {
        let file = gif(&[0x21, 0xF9, 4, 1, 0, 0, 1, 0]);
        let frame = FirstFrame::read(&file);
        assert!(frame.is_some_and(|frame| frame.fill == [4, 5, 6] && frame.fill_alpha == 0));
    }

    #[test]
    fn a_cut_file_is_not_a_panic() {
        let file = gif(&[0x21, 0xF9, 4, 1, 0, 0, 1, 0]);
        for length in 0..file.len() {
            assert_eq!(FirstFrame::read(&file[..length]), None);
        }
    }
}
