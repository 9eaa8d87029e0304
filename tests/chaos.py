#!/usr/bin/env python3
"""Kills the program at random moments and goes on: nothing may be lost, double or half-written.

    cargo build --release && tests/chaos.py [--kills 50] [--program target/release/blip2-wgpu] [TASK…]

Each task (caption, sidecar, eval, convert, pull, index) is run once undisturbed, then killed (SIGKILL) at
random moments and started again until it has been killed often enough; a run that comes to its end is compared
with the undisturbed one and begun anew. `full` and `readonly` write to a disk that is full or may not be
written to: an error that names the file and what to do, and nothing half-written. Linux; Python's standard
library alone. On the software adapter it takes about ten minutes.
"""

import argparse
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socketserver
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = ROOT / "tests/data/tiny"
SCENES = sorted((ROOT / "tests/data/demo").glob("scene_*.png"))


class Chaos:
    """The program, and a folder to run it in."""

    def __init__(self, program, kills, seed):
        self.program, self.kills = program, kills
        self.random = random.Random(seed)
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
        self.images, self.tiny = self.root / "images", self.root / "tiny"
        self.images.mkdir()
        shutil.copytree(TINY, self.tiny)
        for number in range(24):
            shutil.copy(SCENES[number % len(SCENES)], self.images / f"{number:02}.png")

    def start(self, arguments, environment=None, **more):
        return subprocess.Popen(
            [self.program, *map(str, arguments), "--quiet"],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )

    def run(self, arguments, environment=None, **more):
        """Runs to the end: exit code, and what was said on stderr."""
        process = self.start(arguments, environment, **more)
        _, errors = process.communicate()
        return process.returncode, errors.decode()

    def torment(self, name, arguments, fresh, result, check=lambda: None, environment=None):
        """`fresh` clears the place, `result` is what counts of it, `check` what must hold after each kill."""
        fresh()
        started = time.monotonic()
        code, errors = self.run(arguments, environment)
        took = time.monotonic() - started
        assert code == 0, (name, errors)
        wanted = result()
        kills = ends = 0
        fresh()
        while kills < self.kills:
            process = self.start(arguments, environment)
            try:
                process.wait(self.random.uniform(0, 1.05 * took))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            if process.returncode == -signal.SIGKILL:
                kills += 1
                check()
                continue
            assert process.returncode == 0, (name, process.returncode, errors.decode())
            ends += 1
            assert result() == wanted, (name, "differs after", kills, "kills")
            fresh()
        code, errors = self.run(arguments, environment)
        assert code == 0, (name, errors)
        assert result() == wanted, (name, "differs at the end")
        print(f"{name}: killed {kills} times, {ends + 1} times at its end, each as undisturbed")


def hashes(folder, pattern="*"):
    """Every file below `folder` that matches, by its bytes."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def remove(*paths):
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def whole_lines(file):
    """All lines but a torn last one are JSON, and no image has two."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")[:-1]
    names = [json.loads(line)["image"] for line in lines]
    assert len(names) == len(set(names)), names


def caption(chaos):
    out = chaos.root / "captions.jsonl"
    record = chaos.root / "captions.jsonl.run.json"
    chaos.torment(
        "caption --out",
        ["caption", chaos.images, "--out", out, "--batch-size", 4],
        lambda: remove(out, record),
        lambda: out.read_text(),
        lambda: whole_lines(out),
    )


def sidecar(chaos):
    texts = lambda: hashes(chaos.images, "*.txt")
    whole = {}

    def check():
        for name, text in texts().items():
            assert whole.setdefault(name, text) == text, name

    chaos.torment(
        "caption --sidecar",
        ["caption", chaos.images, "--sidecar", "--batch-size", 4],
        lambda: [remove(path) for path in chaos.images.iterdir() if path.suffix != ".png"],
        texts,
        check,
    )
    for path in chaos.images.iterdir():
        if path.suffix != ".png":
            path.unlink()


def eval_(chaos):
    truth = chaos.root / "truth.json"
    images = sorted(chaos.images.glob("*.png"))
    truth.write_text(json.dumps([{"image": path.name, "caption": ["a large red circle"]} for path in images]))
    out = chaos.root / "eval"
    files = ["results.json", "metrics.json"]

    def check():
        for name in files:
            if (out / name).exists():
                json.loads((out / name).read_text())

    chaos.torment(
        "eval caption",
        ["eval", "caption", "--images", chaos.images, "--annotations", truth, "--out", out, "--batch-size", 4],
        lambda: remove(out),
        lambda: [(out / name).read_text() for name in files],
        check,
    )


def convert(chaos):
    out = chaos.root / "converted"
    whole = {}

    def check():
        if out.exists():
            whole.setdefault("it", hashes(out))
            assert hashes(out) == whole["it"]

    def fresh():
        remove(out)
        for path in chaos.root.glob(".*"):
            remove(path)

    def result():
        left = [path.name for path in chaos.root.iterdir() if "convert" in path.name and path != out]
        assert not left, left
        return hashes(out)

    # A run whose folder is there refuses it, rightly: only a kill before the end counts.
    def once():
        process = chaos.start(["convert", TINY, out])
        try:
            process.wait(chaos.random.uniform(0, 0.12))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        return process.returncode, errors.decode()

    fresh()
    assert chaos.run(["convert", TINY, out])[0] == 0
    wanted, kills, ends = result(), 0, 0
    fresh()
    while kills < chaos.kills:
        code, errors = once()
        if code == -signal.SIGKILL:
            kills += 1
            check()
            if out.exists():  # killed after it was named: whole
                assert hashes(out) == wanted
                fresh()
            continue
        assert code == 0, errors
        assert result() == wanted
        ends += 1
        fresh()
    code, errors = chaos.run(["convert", TINY, out])
    assert code == 0 and result() == wanted, errors
    print(f"convert: killed {kills} times, {ends + 1} times at its end, each as undisturbed")


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that sends slowly, so that there is time to be killed in."""

    protocol_version = "HTTP/1.1"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_):
        pass

    def send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(body), 1 << 16):
                self.wfile.write(body[start : start + (1 << 16)])
                time.sleep(0.005)

    def do_GET(self):
        files = sorted(path for path in TINY.iterdir() if path.is_file())
        if "/api/models/" in self.path:
            siblings = [
                {
                    "rfilename": path.name,
                    "size": path.stat().st_size,
                    "blobId": hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest(),
                }
                for path in files
            ]
            return self.send(200, json.dumps({"sha": self.commit, "siblings": siblings}).encode())
        data = (TINY / self.path.rsplit("/", 1)[-1]).read_bytes()
        wanted = self.headers.get("Range")
        if not wanted:
            return self.send(200, data)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        content = ("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        return self.send(206, data[start:], [content])


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client that was killed


def pull(chaos):
    server = Server(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = chaos.root / "hub"
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN": "",
        "NO_PROXY": "*",
    }
    snapshot = cache / "models--some--tiny" / "snapshots" / Hub.commit

    def result():
        left = list(cache.rglob("*.incomplete"))
        assert not left, left
        return hashes(snapshot)

    def check():
        # What has its name is whole.
        if snapshot.exists():
            for name, digest in hashes(snapshot).items():
                assert digest == hashlib.sha256((TINY / name).read_bytes()).hexdigest(), name

    chaos.torment("pull", ["pull", "some/tiny"], lambda: remove(cache), result, check, environment)
    server.shutdown()


def index(chaos):
    file, found = chaos.root / "images.index", chaos.root / "found.jsonl"
    texts = chaos.root / "texts.txt"
    texts.write_text("a large red circle\na small blue square\n")
    arguments = ["retrieve", "--images", chaos.images, "--texts", texts, "--index", file, "--batch-size", 4, "--json"]

    def result():
        process = chaos.start(arguments)
        lines, errors = process.communicate()
        assert process.returncode == 0, errors
        left = [path for path in chaos.root.glob(".blip2-wgpu-*")]
        for path in left:
            path.unlink()  # a part that a kill left beside it; nobody takes it for the index
        return lines

    chaos.torment("retrieve --index", arguments, lambda: remove(file, found), result)


def places(chaos, folder):
    """What writes to `folder`."""
    truth = chaos.root / "truth.json"
    images = sorted(chaos.images.glob("*.png"))
    truth.write_text(json.dumps([{"image": path.name, "caption": ["a circle"]} for path in images]))
    (chaos.root / "texts.txt").write_text("a large red circle\n")
    return {
        "caption --out": ["caption", chaos.images, "--out", folder / "c.jsonl"],
        "caption --out .csv": ["caption", chaos.images, "--out", folder / "c.csv"],
        "caption --explain": ["caption", images[0], "--explain", folder / "look.html"],
        "eval": ["eval", "caption", "--images", chaos.images, "--annotations", truth, "--out", folder / "eval"],
        "convert": ["convert", chaos.tiny, folder / "converted"],
        "embed": ["embed", "image", chaos.images, "--out", folder / "features.npy"],
        "index": ["retrieve", "--images", chaos.images, "--texts", chaos.root / "texts.txt", "--index", folder / "i.index"],
        "stages": ["stages", images[0], "--out", folder / "stages"],
    }


def refused(name, folder, code, errors):
    """An error that names the place, and nothing that looks whole."""
    assert code == 1, (name, code, errors)
    assert str(folder) in errors and "panicked" not in errors, (name, errors)
    assert any(word in errors for word in ("check", "free", "space", "name another", "permissions")), (name, errors)
    for path in folder.rglob("*"):
        whole = path.suffix in (".npy", ".index", ".html", ".csv", ".safetensors", ".json")
        assert not (path.is_file() and whole and path.stat().st_size == 0), (name, path)


def full(chaos):
    folder = chaos.root / "full"

    def limit():
        # The disk takes 1 kB a file; beyond that a write fails, as on a full one.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    cache = {"XDG_CACHE_HOME": str(chaos.root / "cache"), "MESA_SHADER_CACHE_DISABLE": "true"}
    count = 0
    for name, arguments in places(chaos, folder).items():
        remove(folder)
        folder.mkdir()
        code, errors = chaos.run(arguments, cache, preexec_fn=limit)
        refused(name, folder, code, errors)
        count += 1
    remove(folder)
    print(f"full disk: {count} commands say so")


def readonly(chaos):
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        print("read-only folder: not tried, for root may write anywhere and there is no setpriv")
        return
    folder = chaos.root / "readonly"
    for path in [chaos.root, *chaos.root.rglob("*")]:
        path.chmod(0o755)
    (chaos.root / "cache").mkdir(exist_ok=True)
    (chaos.root / "cache").chmod(0o777)
    folder.mkdir()
    folder.chmod(0o555)
    cache = {"XDG_CACHE_HOME": str(chaos.root / "cache"), "HOME": str(chaos.root)}
    nobody = dict(user=65534, group=65534, extra_groups=[]) if os.geteuid() == 0 else {}
    count = 0
    for name, arguments in places(chaos, folder).items():
        code, errors = chaos.run(arguments, cache, cwd="/", **nobody)
        refused(name, folder, code, errors)
        count += 1
    folder.chmod(0o755)
    print(f"read-only folder: {count} commands say so")


TASKS = {
    "caption": caption,
    "sidecar": sidecar,
    "eval": eval_,
    "convert": convert,
    "pull": pull,
    "index": index,
    "full": full,
    "readonly": readonly,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target/release/blip2-wgpu", type=pathlib.Path)
    parser.add_argument("--kills", default=50, type=int)
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("tasks", nargs="*", metavar="TASK", choices=[*TASKS, []], default=[])
    arguments = parser.parse_args()
    chaos = Chaos(arguments.program.resolve(), arguments.kills, arguments.seed)
    try:
        for task in arguments.tasks or TASKS:
            TASKS[task](chaos)
    finally:
        shutil.rmtree(chaos.root)


if __name__ == "__main__":
    main()
