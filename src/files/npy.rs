//! NumPy's `.npy` files (numpy.lib.format).

/// Bytes of a header that [`header`] writes: the least that the format's alignment of 64 allows for
/// any shape of ours.
#[cfg(feature = "cli")]
pub(crate) const HEADER: u64 = 128;

/// The header of an f32 array, version 1.0 of the format: padded with spaces to a line of
/// [`HEADER`] bytes.
#[cfg(feature = "cli")]
pub(crate) fn header(shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let length = HEADER as usize - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{text:<0$}\n", length - 1).bytes());
    header
}

/// A matrix as it lies in a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    /// Whether the values stand column by column.
    pub fortran: bool,
    pub values: Vec<f32>,
}

impl Matrix {
    /// Reads a two-dimensional float32 or float64 array of either byte order, format versions 1 to
    /// 3.
    ///
    /// # Errors
    /// What is wrong with the file, for people.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (header, data) = split(bytes).ok_or("not a numpy array file")?;
        let field =
            |name: &str| after(header, name).ok_or_else(|| format!("the header has no {name}"));
        let kind = field("'descr':")?.trim_start_matches(['\'', '"']);
        let (big_endian, size) = match kind.get(..3) {
            Some("<f4" | "|f4" | "=f4") => (false, 4),
            Some("<f8" | "|f8" | "=f8") => (false, 8),
            Some(">f4") => (true, 4),
            Some(">f8") => (true, 8),
            _ => {
                return Err(format!(
                    "its elements are {}",
                    kind.split(['\'', '"', ',']).next().unwrap_or("unknown")
                ));
            }
        };
        let fortran = field("'fortran_order':")?.starts_with("True");
        let shape = field("'shape':")?
            .trim_start_matches('(')
            .split(')')
            .next()
            .unwrap_or("");
        let sizes: Option<Vec<usize>> = shape
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.parse().ok())
            .collect();
        let Some(&[rows, columns]) = sizes.as_deref() else {
            return Err(format!("its shape is ({shape}), not images × texts"));
        };
        let count = rows
            .checked_mul(columns)
            .filter(|count| count.checked_mul(size) == Some(data.len()));
        if count.is_none() {
            return Err(format!(
                "{rows} × {columns} elements of {size} bytes are not the {} bytes there",
                data.len()
            ));
        }
        Ok(Self {
            rows,
            columns,
            fortran,
            values: data
                .chunks_exact(size)
                .map(|bytes| number(bytes, big_endian))
                .collect(),
        })
    }
}

/// Header text and data of the file.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (version, rest) = rest.split_at_checked(2)?;
    let length_bytes = if version[0] == 1 { 2 } else { 4 };
    let (length, rest) = rest.split_at_checked(length_bytes)?;
    let length = length
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// What comes after a field's name.
fn after<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split_once(name).map(|(_, rest)| rest.trim_start())
}

fn number(bytes: &[u8], big_endian: bool) -> f32 {
    let mut array = [0; 8];
    array[..bytes.len()].copy_from_slice(bytes);
    if big_endian {
        array[..bytes.len()].reverse();
    }
    if bytes.len() == 4 {
        f32::from_bits(u64::from_le_bytes(array) as u32)
    } else {
        f64::from_le_bytes(array) as f32
    }
}
