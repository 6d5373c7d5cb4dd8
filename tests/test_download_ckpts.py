"""checkpoints/download_ckpts.sh, against a server of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "checkpoints" / "download_ckpts.sh"
CHECKPOINT = b"PK" + bytes(range(200))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


class Mirror(ThreadingHTTPServer):
    """Serves `content` under every path, ranges included, and keeps a record of what it was asked for."""

    content: bytes = CHECKPOINT

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Mirror)
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        content = self.server.content
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(params=["curl", "wget"])
def tools(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH with only one of the two downloaders on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname", "head", "mkdir", "mv", "rm", "cat", request.param):
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is not installed")
        (folder / tool).symlink_to(found)
    return str(folder)


def download(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("bash") or "bash", str(SCRIPT), *map(str, arguments)]
    environment = {"no_proxy": "127.0.0.1", **variables}
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_without_names_all_eight_of_meta_s_checkpoints_are_meant():
    home = "https://dl.fbaipublicfiles.com/segment_anything_2"
    answer = download("--dry-run")
    assert answer.stdout.split() == [
        f"{home}/{folder}_hiera_{size}.pt"
        for folder in ("072824/sam2", "092824/sam2.1")
        for size in ("tiny", "small", "base_plus", "large")
    ]


@pytest.mark.parametrize("name", ["large", "sam2.1_hiera_large", "sam2.1_hiera_large.pt"])
def test_a_size_means_sam_2_1_and_full_names_work_too(name):
    assert download("--dry-run", name).stdout.strip().endswith("/092824/sam2.1_hiera_large.pt")


@pytest.mark.parametrize("arguments, said", [(["huge"], "no checkpoint is called 'huge'"), (["--far"], "'--far'")])
def test_an_unknown_name_or_option_is_refused_before_anything_is_fetched(arguments, said, mirror, tmp_path):
    answer = download("tiny", *arguments, "--to", tmp_path / "out", SAM2_CHECKPOINT_URL=mirror.url)
    assert answer.returncode == 1 and said in answer.stderr
    assert mirror.requests == []


def test_checkpoints_land_beside_the_script_wherever_cdpath_leads(mirror, tmp_path):
    for place in ("here", "elsewhere"):
        (tmp_path / place / "checkpoints").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "here" / "checkpoints")
    variables = {"SAM2_CHECKPOINT_URL": mirror.url, "CDPATH": str(tmp_path / "elsewhere")}
    command = ["bash", "checkpoints/download_ckpts.sh", "tiny"]
    subprocess.run(command, cwd=tmp_path / "here", env=os.environ | {"no_proxy": "127.0.0.1"} | variables, check=True)
    assert (tmp_path / "here" / "checkpoints" / "sam2.1_hiera_tiny.pt").read_bytes() == CHECKPOINT


def test_download_arrives_whole_and_is_not_repeated(mirror, tools, tmp_path):
    for _ in range(2):
        answer = download("tiny", "--to", tmp_path / "out", SAM2_CHECKPOINT_URL=mirror.url, PATH=tools)
        assert answer.returncode == 0, answer.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sam2.1_hiera_tiny.pt"]
    assert (tmp_path / "out" / "sam2.1_hiera_tiny.pt").read_bytes() == CHECKPOINT
    assert mirror.requests == [("/092824/sam2.1_hiera_tiny.pt", None)]


def test_download_that_was_cut_off_goes_on_where_it_stopped(mirror, tools, tmp_path):
    (tmp_path / "sam2_hiera_tiny.pt.part").write_bytes(CHECKPOINT[:50])
    answer = download("sam2_hiera_tiny", "--to", tmp_path, SAM2_CHECKPOINT_URL=mirror.url, PATH=tools)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "sam2_hiera_tiny.pt").read_bytes() == CHECKPOINT
    assert mirror.requests == [("/072824/sam2_hiera_tiny.pt", "bytes=50-")]


def test_an_error_page_is_not_kept_as_a_checkpoint(mirror, tools, tmp_path):
    mirror.content = b"<html>please log in</html>"
    answer = download("tiny", "--to", tmp_path / "out", SAM2_CHECKPOINT_URL=mirror.url, PATH=tools)
    assert answer.returncode == 1 and "no checkpoint" in answer.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_server_that_cannot_be_reached_is_named(tools, tmp_path):
    answer = download("tiny", "--to", tmp_path / "out", SAM2_CHECKPOINT_URL="http://127.0.0.1:9", PATH=tools)
    assert answer.returncode == 1
    assert "could not download http://127.0.0.1:9/092824/sam2.1_hiera_tiny.pt" in answer.stderr
