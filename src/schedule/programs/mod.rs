//! What runs on the device, recorded once a shape and replayed.

pub(super) mod decode;
pub(super) mod image;
pub(super) mod outline;
pub(super) mod prefill;
pub(super) mod sample;
