//! Texts that come in pieces and end before one of some texts.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<String>, Vec<&[u8]>)| {
    let (mut stop, pieces) = input;
    stop.retain(|stop| !stop.is_empty());
    blip2_wgpu::fuzzing::stream(&stop, &pieces);
});
