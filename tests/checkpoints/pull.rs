//! `pull` and names for `--model`, against a hub on this machine that misbehaves when told to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::cli_support::{HOUSE, Run, TINY, caption, command, finish};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NAME: &str = "some-one/tiny-blip2";

/// What the hub does with requests for one file.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Sends it.
    Good,
    /// Breaks the connection after so many bytes, each time.
    BreaksAfter(usize),
    /// Sends it whole whatever part is asked for.
    IgnoresRanges,
    /// Sends other bytes than it lists.
    Lies,
    /// Has so many bytes less than it lists.
    Short(usize),
    /// Answers with this status.
    Status(u16),
    /// Answers with this status and `X-Error-Code`.
    Refuses(u16, &'static str),
    /// Sends it once the list of files has been asked for twice, and a while later.
    WaitsForAnother,
}

struct State {
    files: HashMap<String, Vec<u8>>,
    moods: HashMap<String, Mood>,
    token: Option<String>,
    /// Request lines and the headers that matter.
    log: Vec<String>,
}

/// A hub, and the other host that it sends large files from.
struct FakeHub {
    address: String,
    state: Arc<Mutex<State>>,
    cache: tempfile::TempDir,
}

impl FakeHub {
    fn new() -> Self {
        let files = std::fs::read_dir(TINY).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                std::fs::read(&path).unwrap(),
            )
        });
        let state = Arc::new(Mutex::new(State {
            files: files
                .chain([("README.md".to_owned(), b"not wanted".to_vec())])
                .collect(),
            moods: HashMap::new(),
            token: None,
            log: Vec::new(),
        }));
        // Another name of this machine, so that it is another host.
        let other = serve(state.clone(), None).replace("127.0.0.1", "localhost");
        let address = serve(state.clone(), Some(other));
        Self {
            address,
            state,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    fn mood(&self, file: &str, mood: Mood) {
        self.state.lock().unwrap().moods.insert(file.into(), mood);
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// The program with this hub and its own cache.
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
        finish(self.command(arguments, environment))
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = command(arguments);
        for variable in [
            "HF_HOME",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "no_proxy",
        ] {
            command.env_remove(variable);
        }
        command
            .env("HF_ENDPOINT", format!("http://{}", self.address))
            .env("HF_HUB_CACHE", self.cache.path())
            .env("HF_TOKEN_PATH", self.cache.path().join("no token"))
            .env("NO_PROXY", "*")
            .envs(environment.iter().copied());
        command
    }

    /// Where `huggingface_hub` has its lock of a file.
    fn lock(&self, file: &str) -> PathBuf {
        let hash = self.blob(file);
        let name = format!("{}.lock", hash.file_name().unwrap().to_str().unwrap());
        let locks = self.cache.path().join(".locks");
        locks.join("models--some-one--tiny-blip2").join(name)
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--some-one--tiny-blip2")
    }

    fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    fn blob(&self, file: &str) -> PathBuf {
        let state = self.state.lock().unwrap();
        self.repo().join("blobs").join(hash(&state.files[file]))
    }

    /// Fails unless the snapshot is the tiny checkpoint.
    #[track_caller]
    fn holds_the_checkpoint(&self) {
        for entry in std::fs::read_dir(TINY).unwrap() {
            let file = entry.unwrap().path();
            let ours = self.snapshot().join(file.file_name().unwrap());
            assert!(
                std::fs::read(&ours).unwrap() == std::fs::read(&file).unwrap(),
                "{}",
                ours.display()
            );
        }
        assert!(!self.snapshot().join("README.md").exists());
        let reference = std::fs::read_to_string(self.repo().join("refs/main")).unwrap();
        assert_eq!(reference, COMMIT);
        let left = std::fs::read_dir(self.repo().join("blobs")).unwrap();
        let left = left.filter(|entry| entry.as_ref().unwrap().path().extension().is_some());
        assert_eq!(left.count(), 0, "nothing incomplete");
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Answers requests in threads of their own; weights are sent by `other`, if there is one.
fn serve(state: Arc<Mutex<State>>, other: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, other) = (state.clone(), other.clone());
            std::thread::spawn(move || answer(stream, &state, other.as_deref()));
        }
    });
    address
}

/// A door to `hub` that speaks TLS, with a certificate that `tests/data/tls/ca.pem` vouches for.
fn serve_tls(hub: String) -> String {
    let file = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/tls")
            .join(name)
    };
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut outside = rustls::StreamOwned::new(connection, stream);
            let hub = hub.clone();
            std::thread::spawn(move || {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    outside.read_exact(&mut byte)?;
                    request.extend(byte);
                }
                let mut inside = TcpStream::connect(hub)?;
                inside.write_all(&request)?;
                std::io::copy(&mut inside, &mut outside)?;
                outside.conn.send_close_notify();
                outside.flush()
            });
        }
    });
    address
}

/// A SOCKS 5 proxy (RFC 1928) without passwords, and the number of connections that it made.
fn serve_socks() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let made = made.clone();
            std::thread::spawn(move || {
                let mut greeting = [0; 2];
                client.read_exact(&mut greeting)?;
                client.read_exact(&mut vec![0; greeting[1].into()])?;
                client.write_all(&[5, 0])?;
                // Version, connect, reserved, IPv4: what a client sends that resolves names itself.
                let mut request = [0; 10];
                client.read_exact(&mut request)?;
                assert_eq!(request[..4], [5, 1, 0, 1]);
                let [.., a, b, c, d, high, low] = request;
                let host = std::net::Ipv4Addr::new(a, b, c, d);
                let mut target = TcpStream::connect((host, u16::from_be_bytes([high, low])))?;
                made.fetch_add(1, Ordering::Relaxed);
                client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
                let (mut up, mut down) = (client.try_clone()?, target.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut up, &mut down));
                std::io::copy(&mut target, &mut client)?;
                client.shutdown(std::net::Shutdown::Both)
            });
        }
    });
    (address, count)
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, other: Option<&str>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let header = |name: &str| {
        headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let (range, token) = (header("range"), header("authorization"));
    let path = request.split(' ').nth(1)?.to_owned();
    if other.is_none() {
        wait_for_another(state, path.rsplit('/').next()?);
    }
    let mut state = state.lock().unwrap();
    let host = if other.is_some() { "hub" } else { "other" };
    state.log.push(format!(
        "{host} {path} {} {}",
        range.as_deref().unwrap_or("-"),
        token.as_deref().unwrap_or("-")
    ));
    let mut send = |status: &str, extra: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
            body.len()
        );
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body))
            .ok()
    };
    if other.is_some()
        && state.token.is_some()
        && token != state.token.as_ref().map(|token| format!("Bearer {token}"))
    {
        return send("401 Unauthorized", "", b"");
    }
    if path.starts_with("/api/models/some-one/tiny-blip2/revision/") {
        if !path.contains("/main?") && !path.contains(COMMIT) {
            return send("404 Not Found", "", b"{}");
        }
        let siblings: Vec<Value> = state
            .files
            .iter()
            .map(|(name, bytes)| sibling(name, bytes))
            .collect();
        let listing = json!({"id": NAME, "sha": COMMIT, "siblings": siblings, "private": false});
        return send("200 OK", "", listing.to_string().as_bytes());
    }
    let Some(bytes) = path
        .rsplit('/')
        .next()
        .and_then(|name| state.files.get(name))
    else {
        return send("404 Not Found", "", b"");
    };
    let name = path.rsplit('/').next()?;
    let mood = state.moods.get(name).copied().unwrap_or(Mood::Good);
    if let (Some(other), "model.safetensors") = (other, name) {
        return send(
            "302 Found",
            &format!("Location: http://{other}/blobs/{name}\r\n"),
            b"",
        );
    }
    let mut bytes = bytes.clone();
    let start: usize = range
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    match mood {
        Mood::Status(status) => send(&format!("{status} Sorry"), "", b""),
        Mood::Refuses(status, code) => {
            let code = format!("X-Error-Code: {code}\r\nX-Error-Message: Not for you\r\n");
            send(&format!("{status} Sorry"), &code, b"")
        }
        Mood::IgnoresRanges => send("200 OK", "", &bytes),
        Mood::BreaksAfter(count) => {
            let (from, to) = (start, bytes.len().min(start + count));
            let status = if start > 0 {
                "206 Partial Content"
            } else {
                "200 OK"
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\r\n",
                bytes.len() - from,
                bytes.len() - 1,
                bytes.len()
            );
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&bytes[from..to]))
                .ok()
        }
        Mood::Short(less) if start >= bytes.len() - less => {
            send("416 Range Not Satisfiable", "", b"")
        }
        Mood::Good | Mood::Lies | Mood::WaitsForAnother | Mood::Short(_) => {
            if let Mood::Short(less) = mood {
                bytes.truncate(bytes.len() - less);
            }
            if mood == Mood::Lies {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            if start == 0 {
                return send("200 OK", "", &bytes);
            }
            let range = format!(
                "Content-Range: bytes {start}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            );
            send("206 Partial Content", &range, &bytes[start..])
        }
    }
}

/// Waits as long as the file's mood is [`Mood::WaitsForAnother`] and no second process has come.
fn wait_for_another(state: &Mutex<State>, file: &str) {
    let waits = || {
        let state = state.lock().unwrap();
        let listings = state.log.iter().filter(|line| line.contains("/revision/"));
        state.moods.get(file) == Some(&Mood::WaitsForAnother) && listings.count() < 2
    };
    let started = Instant::now();
    let mut waited = false;
    while waits() && started.elapsed() < Duration::from_secs(60) {
        waited = true;
        std::thread::sleep(Duration::from_millis(10));
    }
    if waited {
        // Time for the other to ask for the same.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// How the hub lists a file: by SHA-256, the tiny checkpoint's `config.json` as git names it.
fn sibling(name: &str, bytes: &[u8]) -> Value {
    let tiny = std::fs::metadata(Path::new(TINY).join(name));
    if name == "config.json" && tiny.is_ok_and(|tiny| tiny.len() == bytes.len() as u64) {
        return json!({"rfilename": name, "size": bytes.len(), "blobId": CONFIG_BLOB});
    }
    json!({"rfilename": name, "size": bytes.len(), "blobId": "0".repeat(40),
        "lfs": {"sha256": hash(bytes), "size": bytes.len(), "pointerSize": 134}})
}

/// `git hash-object tests/data/tiny/config.json`
const CONFIG_BLOB: &str = "70974d0ffada43f997f7c26cb5afe2773a64270a";

#[test]
fn a_checkpoint_is_fetched_once_and_used_by_its_name() {
    let hub = FakeHub::new();
    let run = hub.run(&["pull", NAME, "--json"], &[]).exits(0);
    run.says_and(&["some-one/tiny-blip2: fetching 38", "kB", "files"]);
    hub.holds_the_checkpoint();
    let line = run.one_json();
    assert_eq!(
        (&line["commit"], &line["files"]),
        (&json!(COMMIT), &json!(10))
    );
    assert_eq!(Path::new(line["path"].as_str().unwrap()), hub.snapshot());
    // Weights came from the other host.
    assert!(
        hub.log()
            .iter()
            .any(|line| line.starts_with("other /blobs/model.safetensors"))
    );

    // Again: nothing but the listing is asked for, nothing said.
    let again = hub.run(&["pull", NAME], &[]).exits(0);
    assert_eq!(
        again.stdout.trim_end(),
        hub.snapshot().display().to_string()
    );
    assert!(again.stderr.is_empty(), "{again:#?}");
    assert_eq!(hub.log().len(), 1);

    // By its name: from the cache, without the hub.
    let by_name = hub
        .run(&["caption", "--model", NAME, "--json", HOUSE], &[])
        .exits(0);
    let expected = caption(TINY, &[HOUSE]).exits(0).one_json();
    assert_eq!(by_name.one_json(), expected);
    assert!(hub.log().is_empty());
    let offline = hub
        .run(&["pull", NAME], &[("HF_HUB_OFFLINE", "1")])
        .exits(0);
    assert_eq!(
        offline.stdout.trim_end(),
        hub.snapshot().display().to_string()
    );
    assert!(hub.log().is_empty());
}

#[test]
fn a_name_is_pulled_when_it_is_first_used() {
    let hub = FakeHub::new();
    let run = hub
        .run(&["caption", "--model", NAME, "--json", HOUSE], &[])
        .exits(0);
    let expected = caption(TINY, &[HOUSE]).exits(0).one_json();
    assert_eq!(run.one_json(), expected);
    run.says(&["no such folder here", "fetching 38", "to go on"]);
    hub.holds_the_checkpoint();
}

#[test]
fn broken_connections_are_continued() {
    let hub = FakeHub::new();
    hub.mood("model.safetensors", Mood::BreaksAfter(100_000));
    hub.run(&["pull", NAME], &[]).exits(0);
    hub.holds_the_checkpoint();
    let log = hub.log();
    let starts: Vec<&str> = log
        .iter()
        .filter(|line| line.starts_with("other"))
        .map(|line| line.split(' ').nth(2).unwrap())
        .collect();
    assert_eq!(
        starts,
        ["-", "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    );
}

#[test]
fn a_download_is_continued_by_a_later_run() {
    let hub = FakeHub::new();
    let weights = std::fs::read(Path::new(TINY).join("model.safetensors")).unwrap();
    let blob = hub.blob("model.safetensors");
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let incomplete = PathBuf::from(format!("{}.incomplete", blob.display()));
    std::fs::write(&incomplete, &weights[..12_345]).unwrap();
    hub.run(&["pull", NAME], &[]).exits(0);
    hub.holds_the_checkpoint();
    assert!(
        hub.log()
            .iter()
            .any(|line| line.contains("model.safetensors bytes=12345-"))
    );

    // A host that sends all of it again, and one left with more than there is.
    for (mood, left) in [
        (Mood::IgnoresRanges, &weights[..777]),
        (Mood::Good, &[&weights[..], b"more"].concat()[..]),
    ] {
        let hub = FakeHub::new();
        hub.mood("model.safetensors", mood);
        let blob = hub.blob("model.safetensors");
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(format!("{}.incomplete", blob.display()), left).unwrap();
        hub.run(&["pull", NAME], &[]).exits(0);
        hub.holds_the_checkpoint();
    }
}

#[test]
fn two_processes_fetch_a_checkpoint_once() {
    let hub = FakeHub::new();
    hub.mood("model.safetensors", Mood::WaitsForAnother);
    std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| hub.run(&["pull", NAME], &[])));
        for run in runs {
            let run = run.join().unwrap().exits(0);
            assert_eq!(run.stdout.trim_end(), hub.snapshot().display().to_string());
        }
    });
    hub.holds_the_checkpoint();
    let log = hub.log();
    for file in std::fs::read_dir(TINY).unwrap() {
        let name = file.unwrap().file_name();
        let asked = format!("/{} ", name.to_str().unwrap());
        let count = log.iter().filter(|line| line.contains(&asked)).count();
        // Large files are asked for at the hub and at the other host.
        let expected = if asked.contains("model.safetensors") {
            2
        } else {
            1
        };
        assert_eq!(count, expected, "{asked}: {log:#?}");
    }
}

#[test]
fn what_another_process_fetches_is_waited_for() {
    let hub = FakeHub::new();
    let lock = hub.lock("model.safetensors");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let lock = std::fs::File::create(lock).unwrap();
    lock.lock().unwrap();
    let run = std::thread::scope(|scope| {
        let run = scope.spawn(|| hub.run(&["pull", NAME], &[]));
        let started = Instant::now();
        let listed = || {
            let state = hub.state.lock().unwrap();
            state.log.iter().any(|line| line.contains("/revision/"))
        };
        while !listed() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_secs(1));
        assert!(!run.is_finished(), "it must wait");
        let weights = Path::new(TINY).join("model.safetensors");
        std::fs::copy(weights, hub.blob("model.safetensors")).unwrap();
        lock.unlock().unwrap();
        run.join().unwrap()
    });
    let run = run.exits(0);
    run.says_and(&["another process is fetching it", "model.safetensors"]);
    let waits = run
        .stderr
        .iter()
        .filter(|line| line.contains("another process"));
    assert_eq!(waits.count(), 1, "{run:#?}");
    hub.holds_the_checkpoint();
    let log = hub.log();
    let asked = log.iter().any(|line| line.contains("model.safetensors"));
    assert!(!asked, "{log:#?}");
}

#[test]
fn inspect_and_parity_take_names() {
    let hub = FakeHub::new();
    let inspected = hub.run(&["inspect", NAME, "--json"], &[]).exits(0);
    inspected.says_and(&["fetching 38"]);
    let line = inspected.one_json();
    assert_eq!(line["model"], NAME);
    assert_eq!(line["config"]["model_type"], "blip-2");
    hub.holds_the_checkpoint();
    hub.log();
    let rows = hub.run(&["parity", NAME, crate::cli_support::DUMP, "--json"], &[]);
    let rows = rows.exits(0).json();
    assert!(rows.len() > 50 && rows.iter().all(|row| row["pass"] == true));
    assert!(hub.log().is_empty());
}

#[test]
fn what_does_not_hash_as_listed_is_refused_and_removed() {
    for file in ["model.safetensors", "config.json"] {
        let hub = FakeHub::new();
        hub.mood(file, Mood::Lies);
        let run = hub.run(&["pull", NAME], &[]).exits(1);
        run.says_and(&["error: ", file, "where the hub lists", "removed"]);
        assert!(!hub.snapshot().join(file).exists());
        hub.mood(file, Mood::Good);
        hub.run(&["pull", NAME], &[]).exits(0);
        hub.holds_the_checkpoint();
    }
}

#[test]
fn a_file_shorter_than_listed_is_given_up() {
    let hub = FakeHub::new();
    hub.mood("merges.txt", Mood::Short(10));
    let listed = hub.state.lock().unwrap().files["merges.txt"].len();
    let run = hub.run(&["pull", NAME], &[]).exits(1);
    run.says_and(&[
        "merges.txt",
        &format!("sends {} bytes where it lists {listed}", listed - 10),
        "try again",
    ]);
}

#[test]
fn what_python_left_out_is_fetched() {
    let hub = FakeHub::new();
    // As `hf_hub_download` leaves it: some files, and the commit.
    hub.run(&["pull", NAME], &[]).exits(0);
    let expected = caption(TINY, &[HOUSE]).exits(0).one_json();
    let leave_out = |names: &[&str]| {
        std::fs::remove_dir_all(hub.repo().join(".no_exist")).unwrap();
        for name in names {
            std::fs::remove_file(hub.snapshot().join(name)).unwrap();
        }
        hub.log();
    };
    let tokenizer = [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    ];
    let tokenizer: Vec<&str> = tokenizer
        .into_iter()
        .filter(|name| Path::new(TINY).join(name).exists())
        .collect();
    let captioned = |environment: &[(&str, &str)]| {
        hub.run(&["caption", "--model", NAME, "--json", HOUSE], environment)
    };
    leave_out(&tokenizer);
    for run in [
        captioned(&[("HF_HUB_OFFLINE", "1")]),
        hub.run(&["pull", NAME], &[("HF_HUB_OFFLINE", "1")]),
    ] {
        run.exits(1).says_and(&[
            NAME,
            "tokenizer is missing",
            "`blip2-wgpu pull some-one/tiny-blip2`",
        ]);
    }
    assert!(hub.log().is_empty());
    assert_eq!(captioned(&[]).exits(0).one_json(), expected);
    hub.holds_the_checkpoint();
    assert!(
        hub.log()
            .iter()
            .all(|line| !line.contains("model.safetensors"))
    );
    // What another program fetched may be whole, but only the hub knows.
    leave_out(&["generation_config.json"]);
    let offline = hub
        .run(&["pull", NAME], &[("HF_HUB_OFFLINE", "1")])
        .exits(0);
    offline.says_and(&["warn: ", "generation_config.json", "not known"]);
    captioned(&[("HF_HUB_OFFLINE", "1")]).exits(0);
    let gone = captioned(&[("HF_ENDPOINT", "http://127.0.0.1:1")]).exits(0);
    gone.says_and(&["warn: ", "127.0.0.1", "may not be all"]);
    assert_eq!(captioned(&[]).exits(0).one_json(), expected);
    hub.holds_the_checkpoint();
    // Then it is known.
    hub.log();
    captioned(&[]).exits(0);
    assert!(hub.log().is_empty());
}

#[cfg(unix)]
#[test]
fn a_whole_cache_need_not_be_writable() {
    let hub = FakeHub::new();
    hub.run(&["pull", NAME], &[]).exits(0);
    let reference = hub.repo().join("refs/main");
    let when = |path: &Path| path.metadata().unwrap().modified().unwrap();
    // The user of these tests may write anywhere; that nothing was written is what counts.
    let before = when(&reference);
    std::thread::sleep(Duration::from_millis(20));
    hub.run(&["pull", NAME], &[]).exits(0);
    assert_eq!(when(&reference), before);
}

#[test]
fn variables_that_cannot_be_used_are_named() {
    let hub = FakeHub::new();
    for (variable, value) in [
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_TOKEN", "hf_a\nhf_b"),
    ] {
        hub.run(&["pull", NAME], &[(variable, value)])
            .exits(1)
            .one_error(&[variable]);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let hub = FakeHub::new();
    hub.state.lock().unwrap().token = Some("hf_secret".into());
    hub.run(&["pull", NAME], &[])
        .exits(1)
        .says_and(&["401", "HF_TOKEN"]);
    hub.log();
    hub.run(&["pull", NAME], &[("HF_TOKEN", "hf_secret")])
        .exits(0);
    hub.holds_the_checkpoint();
    for line in hub.log() {
        assert_eq!(
            line.starts_with("hub "),
            line.contains("hf_secret"),
            "{line}"
        );
    }
}

#[test]
fn a_gated_file_is_told_from_a_wrong_name() {
    let hub = FakeHub::new();
    let terms = format!("accept the terms at http://{}/{NAME} ", hub.address);
    for status in [401, 403] {
        hub.mood("config.json", Mood::Refuses(status, "GatedRepo"));
        for (token, about) in [
            (None, "no token was sent"),
            (Some("hf_x"), "a token was sent"),
        ] {
            let token: Vec<(&str, &str)> =
                token.map(|token| ("HF_TOKEN", token)).into_iter().collect();
            let run = hub.run(&["pull", NAME], &token).exits(1);
            run.says_and(&[
                "config.json",
                &status.to_string(),
                &terms,
                about,
                "Not for you",
            ]);
            let text = run.stderr.join("\n");
            assert!(
                !text.contains("check the name") && !text.contains("hf_x"),
                "{text}"
            );
        }
    }
    // A token that the hub does not know.
    hub.state.lock().unwrap().token = Some("hf_secret".into());
    hub.run(&["pull", NAME], &[("HF_TOKEN", "hf_other")])
        .exits(1)
        .one_error(&["401", "the token was refused", "set HF_TOKEN"]);
}

#[test]
fn what_cannot_be_pulled_is_named() {
    let hub = FakeHub::new();
    hub.run(&["pull", "nonsense"], &[])
        .exits(2)
        .one_error(&["\"nonsense\"", "OWNER/NAME"]);
    hub.run(&["pull", "no/such"], &[]).exits(1).one_error(&[
        "/api/models/no/such",
        "404",
        "check the name",
    ]);
    hub.run(&["pull", NAME, "--revision", "v9"], &[])
        .exits(1)
        .one_error(&["v9", "404", "--revision"]);
    hub.run(&["pull", NAME, "--revision", "../x"], &[])
        .exits(2)
        .one_error(&["OWNER/NAME"]);
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        let run = hub.run(&["pull", NAME], &[(variable, "1")]).exits(1);
        run.one_error(&[NAME, "not in the cache", "HF_HUB_OFFLINE"]);
    }
    let run = hub
        .run(&["pull", NAME], &[("HF_ENDPOINT", "http://127.0.0.1:1")])
        .exits(1);
    run.one_error(&["http://127.0.0.1:1/api", "check the connection"]);
    hub.mood("config.json", Mood::Status(403));
    hub.run(&["pull", NAME], &[])
        .exits(1)
        .says_and(&["config.json", "403", "terms", "HF_TOKEN"]);
    // A folder that cannot hold the cache.
    let file = hub.cache.path().join("file");
    std::fs::write(&file, "").unwrap();
    let run = hub
        .run(&["pull", NAME], &[("HF_HUB_CACHE", file.to_str().unwrap())])
        .exits(1);
    run.says_and(&["check permissions", "HF_HUB_CACHE"]);
    hub.state.lock().unwrap().files.remove("model.safetensors");
    hub.run(&["pull", NAME], &[])
        .exits(1)
        .one_error(&[NAME, "no checkpoint", "model.safetensors"]);
}

#[test]
fn a_repository_that_lacks_shards_is_refused_before_they_are_fetched() {
    for (index, shard, end) in [
        ("model.safetensors.index.json", "model-0000", ".safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-0000", ".bin"),
    ] {
        let hub = FakeHub::new();
        let [one, two, three] = [1, 2, 3].map(|n| format!("{shard}{n}-of-00003{end}"));
        let map = json!({"weight_map": {"a": one, "b": two, "c": three, "d": three}});
        {
            let files = &mut hub.state.lock().unwrap().files;
            let weights = files.remove("model.safetensors").unwrap();
            files.insert(two.clone(), weights);
            files.insert(index.into(), map.to_string().into_bytes());
        }
        let run = hub.run(&["pull", NAME], &[]).exits(1);
        run.says_and(&[index, "2 are not in the repository", &one, &three]);
        assert_eq!(run.stdout, "");
        let asked = |log: Vec<String>| log.iter().any(|line| line.contains(&two));
        assert!(!asked(hub.log()), "no shard is asked for");
        // Once they are there it goes on.
        for missing in [one, three] {
            let files = &mut hub.state.lock().unwrap().files;
            files.insert(missing, b"weights".to_vec());
        }
        hub.run(&["pull", NAME], &[]).exits(0);
        assert!(asked(hub.log()));
    }
}

#[test]
fn a_language_model_to_convert_with_may_be_a_name() {
    let data = |name: &str| format!("{}/tests/data/convert/{name}", env!("CARGO_MANIFEST_DIR"));
    let hub = FakeHub::new();
    let mut files = HashMap::new();
    for name in [
        "config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    ] {
        files.insert(name.to_owned(), std::fs::read(data("opt/") + name).unwrap());
    }
    // In two shards of PyTorch's, the second of which no tensor is missed from.
    let weights = std::fs::read(data("opt/pytorch_model.bin")).unwrap();
    let other = std::fs::read(data("reader/zip.pth")).unwrap();
    let index = json!({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}});
    files.insert("pytorch_model-1.bin".into(), weights);
    files.insert("pytorch_model-2.bin".into(), other);
    files.insert(
        "pytorch_model.bin.index.json".into(),
        index.to_string().into_bytes(),
    );
    hub.state.lock().unwrap().files = files;
    let folder = tempfile::tempdir().unwrap();
    for (number, calls) in [5 + 3, 0].into_iter().enumerate() {
        let out = folder.path().join(number.to_string());
        let arguments = [
            "convert",
            &data("lavis_pretrained.pth"),
            out.to_str().unwrap(),
            "--vit",
            &data("eva_vit.pth"),
            "--llm",
            NAME,
            "--config",
            &data("micro/config.json"),
            "--json",
        ];
        let line = hub.run(&arguments, &[]).exits(0).one_json();
        assert_eq!(line["tensors"], 113);
        assert_eq!(hub.log().len(), calls, "the second time it is in the cache");
    }
}

/// Checks of a run that goes on being used.
trait Says {
    fn says_and(&self, parts: &[&str]);
}

impl Says for Run {
    #[track_caller]
    fn says_and(&self, parts: &[&str]) {
        let text = self.stderr.join("\n");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing: {self:#?}");
        }
    }
}

#[test]
fn a_companys_authority_is_trusted_where_it_is_named() {
    let hub = FakeHub::new();
    let address = format!("https://{}", serve_tls(hub.address.clone()));
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let [authority, key] =
        ["ca.pem", "server.key"].map(|name| tls.join(name).display().to_string());
    let pull = |more: &[(&str, &str)]| {
        hub.run(
            &["pull", NAME],
            &[&[("HF_ENDPOINT", address.as_str())], more].concat(),
        )
    };
    // Nobody vouches for it.
    pull(&[]).exits(1).one_error(&[&address, "certificate"]);
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"] {
        std::fs::remove_dir_all(hub.cache.path()).unwrap();
        std::fs::create_dir(hub.cache.path()).unwrap();
        pull(&[(variable, &authority)]).exits(0);
        hub.holds_the_checkpoint();
        for nothing in [key.as_str(), "/no/such.pem"] {
            pull(&[(variable, nothing)]).exits(1).one_error(&[
                variable,
                nothing,
                "no certificates",
            ]);
        }
    }
    // Where it lies may be said by a variable, which no shell has expanded.
    let folder = tls.display().to_string();
    for variable in ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let file = (variable, "$CERTIFICATES/ca.pem");
        pull(&[("CERTIFICATES", &folder), file]).exits(0);
        pull(&[("HOME", &folder), (variable, "~/ca.pem")]).exits(0);
    }
}

#[test]
fn certificates_that_are_none_are_named() {
    let hub = FakeHub::new();
    let address = format!("https://{}", serve_tls(hub.address.clone()));
    let authority = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls/ca.pem");
    let authority = std::fs::read_to_string(authority).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let pull = |more: &[(&str, &str)]| {
        hub.run(
            &["pull", NAME],
            &[&[("HF_ENDPOINT", address.as_str())], more].concat(),
        )
    };
    // Nobody vouches for it: what would help is said, and what was looked at.
    pull(&[])
        .exits(1)
        .one_error(&["UnknownIssuer", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]);
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls/server.pem");
    let server = server.display().to_string();
    pull(&[("SSL_CERT_FILE", &server)])
        .exits(1)
        .one_error(&["UnknownIssuer", "among the certificates of SSL_CERT_FILE"]);
    let der = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    let der = write("ca.der", &der);
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
        pull(&[(variable, &der)]).exits(1).one_error(&[
            variable,
            "ca.der",
            "DER format",
            "openssl x509",
        ]);
    }
    // Others of the file are used, and what is damaged is not passed over.
    let damaged = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let letters = "-----BEGIN CERTIFICATE-----\ngarbage!!\n-----END CERTIFICATE-----\n";
    let cut = &authority[..authority.len() / 2];
    for (name, content) in [
        ("cut.pem", format!("{authority}{cut}")),
        ("der.pem", format!("{damaged}{authority}")),
        ("letters.pem", format!("{letters}{authority}")),
    ] {
        let file = write(name, content.as_bytes());
        let run = pull(&[("SSL_CERT_FILE", &file)]).exits(0);
        run.says_and(&["warn: SSL_CERT_FILE", name, "are used"]);
    }
    let good = write("folder/ca.pem", authority.as_bytes());
    let folders = folder.path().join("folder").display().to_string();
    pull(&[("SSL_CERT_DIR", &folders)]).exits(0);
    pull(&[("SSL_CERT_DIR", "/no/such/folder")])
        .exits(1)
        .one_error(&["SSL_CERT_DIR", "/no/such/folder", "no certificates"]);
    let two = format!("{folders}:/no/such/folder");
    for missing in ["/no/such/folder", &two] {
        let run = pull(&[("SSL_CERT_FILE", &good), ("SSL_CERT_DIR", missing)]).exits(0);
        run.says_and(&["warn: SSL_CERT_DIR", "/no/such/folder"]);
    }
}

/// A proxy that refuses to connect to anything, as many do for plain HTTP.
fn serve_refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = BufReader::new(client.try_clone().unwrap()).lines();
            while request
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let refusal = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
            client.write_all(refusal).unwrap();
        }
    });
    address
}

#[test]
fn a_proxy_that_does_not_serve_is_named_with_its_variable() {
    let hub = FakeHub::new();
    let refusing = serve_refusing();
    let pull = |endpoint: &str, proxy: (&str, &str)| {
        let endpoint = ("HF_ENDPOINT", endpoint);
        hub.run(&["pull", NAME], &[endpoint, proxy, ("NO_PROXY", "")])
    };
    for (endpoint, variable, proxy) in [
        (
            "http://hub.invalid",
            "HTTP_PROXY",
            "http://me:secret@127.0.0.1:1",
        ),
        ("https://hub.invalid", "https_proxy", "127.0.0.1:1"),
        (
            "https://hub.invalid",
            "ALL_PROXY",
            "socks5h://me:secret@127.0.0.1:1",
        ),
        (
            "https://hub.invalid",
            "ALL_PROXY",
            "http://me:secret@nowhere.invalid:3128",
        ),
        ("https://hub.invalid", "HTTPS_PROXY", &refusing),
    ] {
        let host = proxy.rsplit(['@', '/']).next().unwrap();
        let run = pull(endpoint, (variable, proxy)).exits(1);
        assert!(!run.stderr.join("\n").contains("secret"), "{run:#?}");
        run.one_error(&[variable, host, "NO_PROXY", "hub.invalid"]);
    }
    pull(
        &format!("http://{}", hub.address),
        ("http_proxy", &refusing),
    )
    .exits(1)
    .one_error(&[
        "405",
        "http_proxy",
        &refusing,
        "CONNECT",
        "https://",
        "NO_PROXY",
    ]);
    for (value, part) in [
        ("http://127.0.0.1:99999", "99999"),
        ("http://me:a#secret@127.0.0.1:1", "%23"),
    ] {
        let run = pull("https://hub.invalid", ("HTTPS_PROXY", value)).exits(1);
        assert!(!run.stderr.join("\n").contains("secret"), "{run:#?}");
        run.one_error(&["HTTPS_PROXY", part]);
    }
}

#[test]
fn no_proxy_counts_as_in_python() {
    let hub = FakeHub::new();
    let (_, port) = hub.address.split_once(':').unwrap();
    // The weights come from localhost, another host.
    let with_port = format!("127.0.0.1:{port},localhost");
    for outside in [&with_port, "*", "127.0.0.0/8, .localhost"] {
        let dead = ("ALL_PROXY", "http://127.0.0.1:1");
        hub.run(&["pull", NAME], &[dead, ("NO_PROXY", outside)])
            .exits(0);
        std::fs::remove_dir_all(hub.repo()).unwrap();
    }
    // Where a file is kept elsewhere, that place counts.
    let (address, connections) = serve_socks();
    let proxy = format!("socks5://{address}");
    let proxy = ("ALL_PROXY", proxy.as_str());
    hub.run(&["pull", NAME], &[proxy, ("NO_PROXY", "127.0.0.1")])
        .exits(0);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let nonsense = ("ALL_PROXY", "nonsense://");
    std::fs::remove_dir_all(hub.repo()).unwrap();
    hub.run(&["pull", NAME], &[nonsense, ("NO_PROXY", "*")])
        .exits(0);
}

#[cfg(unix)]
#[test]
fn the_cache_is_where_the_variable_says_or_refused() {
    use std::os::unix::ffi::OsStrExt;
    let hub = FakeHub::new();
    let folder = tempfile::tempdir().unwrap();
    let pull = |home: &std::ffi::OsStr| {
        let mut command = hub.command(&["pull", NAME], &[]);
        command.env_remove("HF_HUB_CACHE").env("HF_HOME", home);
        finish({
            command.current_dir(folder.path());
            command
        })
    };
    pull("~no-such-user/hf".as_ref())
        .exits(1)
        .one_error(&["HF_HOME", "~no-such-user"]);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    pull(odd.as_os_str()).exits(0);
    assert!(
        odd.join("hub/models--some-one--tiny-blip2/refs/main")
            .exists()
    );
}

#[test]
fn a_socks_proxy_is_spoken_to_and_a_wrong_one_named() {
    let hub = FakeHub::new();
    let (address, connections) = serve_socks();
    let pull = |proxy: &str, outside: &str| {
        hub.run(
            &["pull", NAME],
            &[("ALL_PROXY", proxy), ("NO_PROXY", outside)],
        )
    };
    pull("socks6://127.0.0.1:1", "")
        .exits(1)
        .one_error(&["ALL_PROXY", "socks6", "socks5"]);
    pull(&format!("socks5://{address}"), "").exits(0);
    hub.holds_the_checkpoint();
    assert!(connections.load(Ordering::Relaxed) > 1);
    std::fs::remove_dir_all(hub.cache.path()).unwrap();
    std::fs::create_dir(hub.cache.path()).unwrap();
    let before = connections.load(Ordering::Relaxed);
    pull(&format!("socks5://{address}"), "127.0.0.1,localhost").exits(0);
    assert_eq!(connections.load(Ordering::Relaxed), before);
}
