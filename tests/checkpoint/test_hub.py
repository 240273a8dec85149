"""Downloads from a hub: a server on the loopback interface with the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from vit_export.checkpoint.hub import Location, fetch
from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError, UsageError
from vit_export.model.vit import create_model
from vit_export.variants import ViTConfig, get_variant

VARIANT = "deit_ti"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import json
from vit_export.checkpoint.hub import Location, fetch
from vit_export.errors import VitExportError
from vit_export.variants import get_variant
results = {{}}
for source in {sources!r}:
    try:
        fetched = fetch(source, variant=get_variant({variant!r}))
    except VitExportError as error:
        results[source] = {{"error": type(error).__name__, "message": str(error)}}
    else:
        results[source] = {{"path": str(fetched.path), "name": fetched.name, "stem": fetched.stem}}
print(json.dumps(results))
"""


@dataclass
class Hub:
    """Repositories by name, and the requests received."""

    repositories: dict[str, Path]
    url: str = ""
    is_hub: bool = True
    requests: list[str] = field(default_factory=list)


class Resolver(BaseHTTPRequestHandler):
    """Repository, list of files, and HEAD and GET of a file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(f"{self.command} {self.path}")
        if not hub.is_hub:
            return self._send(404, b"not found", {})
        parts = self.path.split("?")[0].strip("/").removeprefix("api/models/").split("/")
        name, (kind, revision), file = "/".join(parts[:2]), parts[2:4], "/".join(parts[4:])
        folder = hub.repositories.get(name)
        if folder is None:
            return self._refuse("RepoNotFound")
        if revision not in ("main", "v2", COMMIT):
            return self._refuse("RevisionNotFound")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if kind == "revision":
            siblings = [{"rfilename": file} for file in sizes]
            return self._send_json({"id": name, "sha": COMMIT, "siblings": siblings})
        if kind == "tree":
            return self._send_json(
                [{"type": "file", "path": file, "size": size, "oid": "0" * 40}
                 for file, size in sizes.items()]
            )  # fmt: skip
        if file not in sizes:
            return self._refuse("EntryNotFound")
        data = (folder / file).read_bytes()
        return self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories of Hugging Face, timm, with shards, with a pickle, and without weights."""
    root = tmp_path_factory.mktemp("hub")
    kinds = {name: root / name for name in ("hf", "timm", "sharded", "pickle", "empty")}
    for folder in kinds.values():
        folder.mkdir()
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(kinds["hf"])
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(kinds["hf"])
    for name in ("pytorch_model.bin", "flax_model.msgpack"):
        (kinds["hf"] / name).write_bytes(b"not needed")
    torch.save(model.state_dict(), kinds["pickle"] / "pytorch_model.bin")
    (kinds["pickle"] / "config.json").write_bytes((kinds["hf"] / "config.json").read_bytes())
    model.save_pretrained(kinds["sharded"], max_shard_size="30KB")
    assert len(list(kinds["sharded"].glob("*.safetensors"))) > 1
    deit = get_variant(VARIANT, depth=1, img_size=32, num_classes=2)
    save_file(dict(create_model(deit).state_dict()), kinds["timm"] / "model.safetensors")
    (kinds["timm"] / "config.json").write_text(
        json.dumps({"architecture": "deit_tiny_distilled_patch16_224", "pretrained_cfg": {}})
    )
    (kinds["empty"] / "README.md").write_text("nothing here")
    return {f"someone/{name}": folder for name, folder in kinds.items()}


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Start the server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Resolver)
    server.hub = hub  # type: ignore[attr-defined]
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    """The server; `fetch_all` clears its requests."""
    hub = Hub(dict(repositories))
    server = serve(hub)
    yield hub
    server.shutdown()
    server.server_close()


Results = dict[str, dict[str, str]]


def fetch_all(sources: list[str], home: Path, hub: Hub, **environment: str) -> Results:
    """Fetch in a new interpreter: huggingface_hub reads its environment once, when imported."""
    hub.requests.clear()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", FETCH.format(sources=sources, variant=VARIANT)],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1",
             "no_proxy": "127.0.0.1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


ABSENT = {
    "hf:someone/gone": "there is no such repository, or you have no access",
    "hf:someone/hf@v3": "no revision 'v3'",
    "hf:someone/empty": "expected one of model.safetensors, ",
}
PRESENT = [
    "hub", "hf:someone/hf", "hf:someone/sharded@v2", "hf:someone/timm", "hf:someone/pickle"
]  # fmt: skip


@dataclass
class Downloads:
    """The same sources fetched with a network and then without one."""

    online: Results
    requests: list[str]
    offline: Results
    offline_requests: list[str]


@pytest.fixture(scope="module")
def downloads(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Downloads:
    """Two interpreters that share a cache; `hub` is the repository of a variant."""
    home = tmp_path_factory.mktemp("home")
    hub.repositories[get_variant(VARIANT).hub] = hub.repositories["someone/timm"]
    online, requests = fetch_all([*PRESENT, *ABSENT], home, hub), list(hub.requests)
    offline = fetch_all([*PRESENT, "hf:someone/never"], home, hub, HF_HUB_OFFLINE="1")
    return Downloads(online, requests, offline, list(hub.requests))


def test_weights_are_downloaded_with_the_json_files_beside_them(downloads: Downloads) -> None:
    """The name for the manifest is id and commit."""
    fetched = downloads.online["hf:someone/hf"]
    assert (fetched["name"], fetched["stem"]) == (f"someone/hf@{COMMIT}", "hf")
    loaded = load_checkpoint(fetched["path"])
    assert (loaded.report.layout, loaded.preprocess.crop_mode) == ("huggingface", "squash")


def test_every_shard_of_the_requested_revision_is_downloaded(downloads: Downloads) -> None:
    """The index names the files."""
    path = downloads.online["hf:someone/sharded@v2"]["path"]
    assert load_checkpoint(path).report.layout == "huggingface"
    assert any("/someone/sharded/revision/v2" in line for line in downloads.requests)


def test_only_files_that_are_needed_are_downloaded(downloads: Downloads) -> None:
    """No pickle where there are safetensors, and no other framework's weights."""
    downloaded = [line for line in downloads.requests if "/resolve/" in line]
    assert not any("flax_model" in line for line in downloaded)
    assert not any("/someone/hf/" in line and "pytorch_model" in line for line in downloaded)
    assert downloads.online["hf:someone/pickle"]["path"].endswith("/pytorch_model.bin")


def test_a_timm_repository_is_read_with_its_config(downloads: Downloads) -> None:
    """The architecture named in it gives the number of heads."""
    assert load_checkpoint(downloads.online["hf:someone/timm"]["path"]).config.num_heads == 3


def test_cached_repositories_are_read_without_requests_when_offline(downloads: Downloads) -> None:
    """HF_HUB_OFFLINE is honoured."""
    for source in PRESENT:
        assert downloads.offline[source] == downloads.online[source]
    assert downloads.offline_requests == []


def test_a_repository_that_is_not_cached_is_an_error_when_offline(downloads: Downloads) -> None:
    """The hint names both ways out."""
    result = downloads.offline["hf:someone/never"]
    assert result["error"] == "CheckpointError"
    assert "HF_HUB_OFFLINE forbids to download it" in result["message"]
    assert "hf download someone/never" in result["message"]


@pytest.mark.parametrize("source", ABSENT)
def test_an_absent_repository_revision_or_weights_file_is_an_error(
    source: str, downloads: Downloads
) -> None:
    """The message names which."""
    assert downloads.online[source]["error"] == "CheckpointError"
    assert ABSENT[source] in downloads.online[source]["message"]


def test_the_repository_of_a_variant_is_downloaded(downloads: Downloads) -> None:
    """`--weights hub`."""
    assert downloads.online["hub"]["name"] == f"{get_variant(VARIANT).hub}@{COMMIT}"


def test_an_endpoint_that_is_no_hub_is_named(tmp_path: Path) -> None:
    """A server that answers every request with 404."""
    other = Hub({}, is_hub=False)
    server = serve(other)
    result = fetch_all(["hf:someone/hf"], tmp_path / "home", other)["hf:someone/hf"]
    server.shutdown()
    server.server_close()
    assert f"{other.url} does not answer as a hub" in result["message"]
    assert "HF_ENDPOINT" in result["message"]


def test_the_source_in_the_report_is_the_name_of_the_repository(
    repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the name of the file in the cache."""
    path = repositories["someone/hf"] / "model.safetensors"
    fetched = Location(path=path, name="someone/hf@1234", stem="hf")
    monkeypatch.setattr("vit_export.checkpoint.load.fetch", lambda *_, **__: fetched)
    loaded = load_checkpoint("hf:someone/hf")
    assert (loaded.weights.source, loaded.config.variant) == ("someone/hf@1234", "hf")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub is optional."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'vit-export\[hub\]'"):
        load_checkpoint("hf:someone/hf")


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/b c"])
def test_a_source_that_names_no_repository_is_a_usage_error(source: str) -> None:
    """Raised before any request."""
    with pytest.raises(UsageError, match="expected hf:OWNER/NAME"):
        load_checkpoint(source)


@pytest.mark.parametrize("variant", [None, get_variant("l32"), ViTConfig(variant="mine")])
def test_a_variant_without_a_repository_is_a_usage_error(variant: ViTConfig | None) -> None:
    """The message lists those that have one."""
    with pytest.raises(UsageError, match="Variants that have one: ti16"):
        fetch("hub", variant=variant)
