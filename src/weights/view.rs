//! A stored tensor as it lies in its file.

use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;

use super::dtype::BadElement;
use super::error::WeightsError;

/// One stored tensor: a view into the mapping.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Elements from one index to the next, a dimension; `None` where they lie in row-major order,
    /// one after another.
    pub strides: Option<&'a [usize]>,
    /// From the first element to the last: little-endian, with no alignment promised.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
}

impl<'a> TensorView<'a> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of its elements.
    pub(super) fn stored_bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }

    /// The bytes of a range of elements, where they lie one after another.
    pub fn row_major(&self, elements: Range<usize>) -> Option<&'a [u8]> {
        let size = self.dtype.bitsize() / 8;
        match self.strides {
            None => self.bytes.get(elements.start * size..elements.end * size),
            Some(_) => None,
        }
    }

    /// Copies the elements from `start` on, in row-major order, into `target`, as many as it holds.
    /// No more may be asked for than there are.
    pub fn copy(&self, start: usize, target: &mut [u8]) {
        let size = self.dtype.bitsize() / 8;
        let Some(strides) = self.strides else {
            let from = start * size;
            target.copy_from_slice(&self.bytes[from..from + target.len()]);
            return;
        };
        let mut index = self.index_of(start);
        for element in target.chunks_exact_mut(size) {
            let offset = index.iter().zip(strides).map(|(i, stride)| i * stride);
            let from = offset.sum::<usize>() * size;
            element.copy_from_slice(&self.bytes[from..from + size]);
            advance(&mut index, self.shape);
        }
    }

    /// The error of a type that is no weight's.
    pub fn bad_type(&self) -> WeightsError {
        WeightsError::ElementType {
            file: self.file.into(),
            tensor: self.name.into(),
            found: format!("{:?}", self.dtype),
        }
    }

    /// The error of another shape than the model has.
    pub(super) fn bad_shape(&self, expected: &[usize]) -> WeightsError {
        WeightsError::Shape {
            file: self.file.into(),
            tensor: self.name.into(),
            expected: expected.to_vec(),
            found: self.shape.to_vec(),
        }
    }

    /// The error of an element that the conversion from element `start` on found.
    pub fn bad_value(&self, start: usize, bad: BadElement) -> WeightsError {
        WeightsError::BadValue {
            file: self.file.into(),
            tensor: self.name.into(),
            index: start + bad.index,
            value: bad.value,
            problem: if bad.value.is_finite() {
                "beyond the range it is converted to"
            } else {
                "not a finite number"
            },
        }
    }

    /// The index in each dimension of the element `flat` in row-major order.
    fn index_of(&self, mut flat: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        for (index, &size) in index.iter_mut().zip(self.shape).rev() {
            *index = flat % size.max(1);
            flat /= size.max(1);
        }
        index
    }

    /// Whether two tensors have the same values, as far as their bytes tell.
    pub(super) fn equals(&self, other: &Self) -> bool {
        let plain = self.strides.is_none() && other.strides.is_none();
        plain && self.dtype == other.dtype && self.bytes == other.bytes
    }
}

/// The next index in row-major order.
fn advance(index: &mut [usize], shape: &[usize]) {
    for (index, &size) in index.iter_mut().zip(shape).rev() {
        *index += 1;
        if *index < size {
            return;
        }
        *index = 0;
    }
}
