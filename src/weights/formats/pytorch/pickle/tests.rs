use super::*;

fn read(bytes: &[u8]) -> Result<Pickle<'_>, Refusal> {
    Pickle::read(bytes)
}

#[track_caller]
fn refuses(bytes: &[u8], part: &str) {
    match read(bytes) {
        Err(Refusal::Broken(problem)) => assert!(problem.contains(part), "{problem}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_become_plain_data() {
    // {"a": (1, -2, 65535, None), "b": [True, 2**70, 1.5]}
    let bytes = b"\x80\x02}(X\x01\0\0\0a(K\x01J\xfe\xff\xff\xffM\xff\xffNtX\x01\0\0\0b](\x88\x8a\x09\0\0\0\0\0\0\0\0\x40G\x3f\xf8\0\0\0\0\0\0eu.rest";
    let pickle = read(bytes).unwrap();
    assert_eq!(pickle.length(), bytes.len() - 4);
    let a = pickle.value(pickle.root(), "a").unwrap();
    let numbers: Vec<_> = pickle
        .items(a)
        .unwrap()
        .iter()
        .map(|&id| pickle.int(id))
        .collect();
    assert_eq!(numbers, [Some(1), Some(-2), Some(65535), None]);
    let b = pickle.value(pickle.root(), "b").unwrap();
    let numbers: Vec<_> = pickle
        .items(b)
        .unwrap()
        .iter()
        .map(|&id| pickle.int(id))
        .collect();
    assert_eq!(numbers, [Some(1), Some(1 << 70), None]);
}

#[test]
fn later_values_of_a_key_win_and_the_memo_shares() {
    // d = {}; d["k"] = 1; d["k"] = d (a cycle)
    let pickle = read(b"\x80\x02}q\x00X\x01\0\0\0kq\x01K\x01sh\x01h\x00s.").unwrap();
    let root = pickle.root();
    assert_eq!(pickle.value(root, "k"), Some(root));
    assert_eq!(pickle.entries(root).unwrap().len(), 2);
}

#[test]
fn depth_costs_nothing() {
    let deep = [&b"\x80\x02"[..], b")", &vec![0x85; 2_000_000], b"."].concat();
    let pickle = read(&deep).unwrap();
    assert_eq!(pickle.nodes().len(), 2_000_001);
    let marks = vec![b'('; 2_000_000];
    refuses(&marks, "ends inside");
}

#[test]
fn counts_that_cannot_be_are_refused_without_memory() {
    refuses(b"\x80\x02X\xff\xff\xff\xffabc.", "ends inside its pickle");
    refuses(
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        "ends inside its pickle",
    );
    refuses(b"\x80\x02\x8b\xff\xff\xff\x7f1.", "ends inside its pickle");
    refuses(&vec![b'N'; MAX_NODES + 2], "objects");
}

#[test]
fn small_files_do_not_grow() {
    refuses(&vec![b'('; MAX_INSTRUCTIONS + 1], "instructions");
    // A list of 5,000 pairs, made into a dictionary 5,000 times.
    let list = [
        &b"ccollections\nOrderedDict\nq\x00](NN\x86q\x01"[..],
        &b"h\x01".repeat(5_000),
        b"e\x85q\x02",
        &b"h\x00h\x02R".repeat(5_000),
        b".",
    ]
    .concat();
    refuses(&list, "repeats a list of keys");
    let long = [
        &b"X\x01\x04\0\0"[..],
        &[b'a'; MAX_TEXT_BYTES + 1],
        b"X\x01\0\0\0a\x86.",
    ]
    .concat();
    let pickle = read(&long).unwrap();
    let texts = pickle.nodes().iter();
    let texts = texts.filter(|node| matches!(node, Node::Text(_)));
    assert_eq!(texts.count(), 1, "what is too long for a name is not kept");
}

#[test]
fn nonsense_is_refused() {
    refuses(b"", "ends inside");
    refuses(b".", "stack runs empty");
    refuses(b"(.", "stack runs empty");
    refuses(b"N(0", "stack runs empty");
    refuses(b"(N\x85\x85\x86.", "stack runs empty");
    refuses(b"t.", "mark is missing");
    refuses(b"h\x07.", "has not made");
    refuses(b"Na.", "stack runs empty");
    refuses(b"NNa.", "no list");
    refuses(b"N(NNu.", "no dictionary");
    refuses(b"}(Nu.", "key without a value");
    refuses(b"\x80\x09N.", "protocol 9");
    refuses(b"\xff", "unknown instruction 0xff");
    refuses(b"I1\n.", "text form");
    refuses(b"NN\x93.", "no text");
    refuses(b"\x82\x01.", "unknown instruction 0x82"); // copyreg's extension codes
}
