//! Scores of all pairs of images and texts, from numpy's `.npy` files.

use std::path::Path;

use super::EvalError;
use crate::files::bounded;
use crate::files::npy::Matrix;

/// A matrix of scores `[images, texts]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreMatrix {
    images: usize,
    texts: usize,
    values: Vec<f32>,
}

/// The most that is read of a matrix: COCO's 5,000 images and 25,000 texts take 1 GB in float64.
const MAX_BYTES: u64 = 8 << 30;

impl ScoreMatrix {
    /// A matrix from its rows, `None` where `values` are not `images × texts`.
    #[must_use]
    pub fn new(images: usize, texts: usize, values: Vec<f32>) -> Option<Self> {
        (images.checked_mul(texts) == Some(values.len())).then_some(Self {
            images,
            texts,
            values,
        })
    }

    /// Rows.
    #[must_use]
    pub fn images(&self) -> usize {
        self.images
    }

    /// Columns.
    #[must_use]
    pub fn texts(&self) -> usize {
        self.texts
    }

    /// The score of an image and a text. Out of range is a caller's mistake and gives negative
    /// infinity.
    #[must_use]
    pub fn get(&self, image: usize, text: usize) -> f32 {
        let index = image * self.texts + text;
        if text < self.texts {
            self.values.get(index).copied().unwrap_or(f32::NEG_INFINITY)
        } else {
            f32::NEG_INFINITY
        }
    }

    /// Images to texts and texts to images exchanged.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let values = (0..self.texts).flat_map(|t| (0..self.images).map(move |i| self.get(i, t)));
        Self {
            images: self.texts,
            texts: self.images,
            values: values.collect(),
        }
    }

    /// Reads a two-dimensional float32 or float64 array, in C or Fortran order, of either byte
    /// order.
    ///
    /// # Errors
    /// A file that is no such array, or a score that is not a number.
    pub fn read(file: &Path) -> Result<Self, EvalError> {
        let bytes = bounded::read(file, MAX_BYTES).map_err(EvalError::read(file))?;
        let matrix = Self::parse(&bytes).map_err(|problem| EvalError::Npy {
            file: file.into(),
            problem,
        })?;
        match matrix.nan() {
            None => Ok(matrix),
            Some((row, column)) => Err(EvalError::item(
                file,
                format!("the score of row {row}, column {column}"),
                "is not a number; compute the scores anew",
            )),
        }
    }

    /// Row and column of a score that is not a number.
    fn nan(&self) -> Option<(usize, usize)> {
        let index = self.values.iter().position(|value| value.is_nan())?;
        Some((index / self.texts, index % self.texts))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Matrix {
            rows,
            columns,
            fortran,
            values,
        } = Matrix::parse(bytes)?;
        let matrix = |images, texts| Self {
            images,
            texts,
            values,
        };
        Ok(if fortran {
            matrix(columns, rows).transposed()
        } else {
            matrix(rows, columns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 1 file.
    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn both_widths_orders_and_byte_orders() {
        let expected = ScoreMatrix::new(2, 3, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let c = [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0];
        let fortran = [0.0f64, 3.0, 1.0, 4.0, 2.0, 5.0];
        let little: Vec<u8> = c.iter().flat_map(|v| v.to_le_bytes()).collect();
        let big: Vec<u8> = c.iter().flat_map(|v| v.to_be_bytes()).collect();
        let wide: Vec<u8> = fortran.iter().flat_map(|v| v.to_le_bytes()).collect();
        for bytes in [
            npy("<f4", "False", "(2, 3)", &little),
            npy(">f4", "False", "(2, 3)", &big),
            npy("<f8", "True", "(2, 3)", &wide),
        ] {
            assert_eq!(ScoreMatrix::parse(&bytes).ok(), expected);
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_found_in_either_order() {
        let scores = [1.0f32, 2.0, f32::NAN, 3.0];
        let bytes: Vec<u8> = scores.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (fortran, place) in [("False", (1, 0)), ("True", (0, 1))] {
            let matrix = ScoreMatrix::parse(&npy("<f4", fortran, "(2, 2)", &bytes));
            assert_eq!(matrix.expect("a matrix").nan(), Some(place));
        }
    }

    #[test]
    fn damaged_files_are_named_not_believed() {
        for (bytes, part) in [
            (b"hello".to_vec(), "not a numpy"),
            (npy("<i8", "False", "(1, 1)", &[0; 8]), "elements are <i8"),
            (npy("<f4", "False", "(3,)", &[0; 12]), "shape"),
            (npy("<f4", "False", "(2, 2)", &[0; 12]), "12 bytes"),
            (
                npy("<f4", "False", "(99999999999999, 99999999999999)", &[0; 12]),
                "12 bytes",
            ),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "not a numpy"),
            (b"\x93NUMPY\x01\x00\x04\x00abcd".to_vec(), "no 'descr'"),
        ] {
            let error = ScoreMatrix::parse(&bytes).expect_err("refused");
            assert!(error.contains(part), "{error}");
        }
    }
}
