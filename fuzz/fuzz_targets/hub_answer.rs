//! What a hub answers when it is asked for a repository's files, and a repository's name.
#![no_main]

use blip2_wgpu::hub::RepoName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(listing) = blip2_wgpu::fuzzing::hub_answer(bytes) {
        let _ = listing.bytes();
        for file in &listing.files {
            assert!(!file.name.contains('/') && !file.name.contains(".."));
        }
    }
    if let Ok(name) = std::str::from_utf8(bytes).map_or(RepoName::parse(""), RepoName::parse) {
        assert!(!name.folder().contains('/'));
    }
});
