//! Pillow's scaling of PNM samples whose largest value is not that of their bits.

/// What the largest sample of a grey or colour image stands for; `None` for other kinds, and where
/// samples are not scaled.
pub(super) fn largest_value(file: &[u8]) -> Option<u32> {
    const AFTER_SIZE: usize = 2;
    let [b'P', b'2' | b'3' | b'5' | b'6', header @ ..] = file else {
        return None;
    };
    let lines = header.split(|&byte| byte == b'\n');
    let lines = lines.map(|line| line.split(|&byte| byte == b'#').next().unwrap_or_default());
    let words = lines.flat_map(|line| line.split(u8::is_ascii_whitespace));
    let word = words.filter(|word| !word.is_empty()).nth(AFTER_SIZE)?;
    let value = std::str::from_utf8(word).ok()?.parse().ok()?;
    (1..65535)
        .contains(&value)
        .then_some(value)
        .filter(|&value| value != 255)
}

/// A sample that was scaled from `largest` to `whole`, scaled to `wanted` as Pillow does: exact halves
/// go to the even neighbour. Clipped at 255.
pub(super) fn rescale(sample: u32, whole: u32, largest: u32, wanted: u32) -> u8 {
    let stored = (u64::from(sample) * u64::from(largest) + u64::from(whole / 2)) / u64::from(whole);
    let scaled = stored as f64 / f64::from(largest) * f64::from(wanted);
    scaled.round_ties_even() as u8 // saturates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_values() {
        let value = |header: &[u8]| largest_value(header);
        assert_eq!(value(b"P5\n7 8\n100\nxyz"), Some(100));
        assert_eq!(value(b"P6 # a comment 1 2 3\n7 #8\n 8 1000\n"), Some(1000));
        assert_eq!(value(b"P5 7 8 255\n"), None);
        assert_eq!(value(b"P4 7 8 100\n"), None);
        assert_eq!(value(b"P5 7 8"), None);
    }

    #[test]
    fn halves_go_to_the_even_neighbour() {
        // 10 of 100 is 25.5, which the `image` crate makes 26; 30 of 100 is 76.5, made 77.
        assert_eq!(rescale(26, 255, 100, 255), 26);
        assert_eq!(rescale(77, 255, 100, 255), 76);
        assert_eq!(rescale(6554, 65535, 1000, 255), 26);
        assert_eq!(rescale(255, 255, 100, 255), 255);
    }
}
