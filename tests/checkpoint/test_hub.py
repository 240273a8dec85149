"""Downloads from a hub, against a server on the loopback interface that speaks its protocol."""

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
import transformers
from safetensors.torch import save_file

from vit_export.checkpoint.hub import fetch
from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError, UsageError
from vit_export.model.vit import create_model
from vit_export.variants import ViTConfig, get_variant

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import json
from vit_export.errors import VitExportError
from vit_export.checkpoint.load import load_checkpoint
results = {{}}
for source in {sources!r}:
    try:
        found = load_checkpoint(source, variant={variant!r})
    except VitExportError as error:
        results[source] = {{"error": type(error).__name__, "message": str(error)}}
    else:
        results[source] = {{
            "source": found.weights.source, "layout": found.weights.layout,
            "sha256": found.weights.sha256, "crop_mode": found.preprocess.crop_mode,
            "num_heads": found.config.num_heads, "variant": found.config.variant}}
print(json.dumps(results))
"""


@dataclass
class Hub:
    """Repositories by name, and what was asked for."""

    repositories: dict[str, Path]
    url: str = ""
    commit: str = COMMIT
    requests: list[str] = field(default_factory=list)


class Resolver(BaseHTTPRequestHandler):
    """HEAD and GET of /{owner}/{name}/resolve/{revision}/{file}."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        repository = hub.repositories.get("/".join(parts[:2]))
        if len(parts) < 5 or parts[2] != "resolve" or repository is None:
            return self._refuse("RepoNotFound", with_body)
        if parts[3] not in ("main", "v2", COMMIT):
            return self._refuse("RevisionNotFound", with_body)
        path = repository / parts[4]
        if not path.is_file():
            return self._refuse("EntryNotFound", with_body)
        data = path.read_bytes()
        self.send_response(200)
        if hub.commit:
            self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)
        return None

    def _refuse(self, code: str, with_body: bool) -> None:
        body = json.dumps({"error": code}).encode()
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face repository, a timm one, a sharded one, and one without weights."""
    root = tmp_path_factory.mktemp("hub")
    kinds = {name: root / name for name in ("hf", "timm", "sharded", "empty")}
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
    model.save_pretrained(kinds["sharded"], max_shard_size="30KB")
    assert len(list(kinds["sharded"].glob("*.safetensors"))) > 1
    deit = get_variant("deit_ti", depth=1, img_size=32, num_classes=2)
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
    """The server; `load` forgets what was asked of it before."""
    found = Hub(dict(repositories))
    server = serve(found)
    yield found
    server.shutdown()
    server.server_close()


Results = dict[str, dict[str, Any]]


def load(
    sources: list[str], home: Path, hub: Hub, *, variant: str | None = None, **environment: str
) -> Results:
    """Load in a fresh interpreter: huggingface_hub reads its environment once."""
    hub.requests.clear()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(sources=sources, variant=variant)],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1",
             "no_proxy": "127.0.0.1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


ABSENT = {
    "hf:someone/gone": "there is no such repository, or it is not open to you",
    "hf:someone/hf@v3": "no revision 'v3'",
    "hf:someone/empty": "expected one of model.safetensors, ",
}
SOURCES = ["hf:someone/hf", "hf:someone/sharded@v2", "hf:someone/timm", *ABSENT]


@dataclass
class Downloads:
    """The same sources with a network and then without one."""

    online: Results
    requests: list[str]
    offline: Results
    offline_requests: list[str]


@pytest.fixture(scope="module")
def downloads(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Downloads:
    """Two interpreters that share a cache."""
    home = tmp_path_factory.mktemp("home")
    online, requests = load(SOURCES, home, hub), list(hub.requests)
    offline = load([*SOURCES[:3], "hf:someone/never"], home, hub, HF_HUB_OFFLINE="1")
    return Downloads(online, requests, offline, list(hub.requests))


def test_a_repository_is_downloaded_with_what_belongs_to_it(
    downloads: Downloads, repositories: dict[str, Path]
) -> None:
    """Weights, config and preprocessor; the source in the manifest is id and commit."""
    content = (repositories["someone/hf"] / "model.safetensors").read_bytes()
    assert downloads.online["hf:someone/hf"] == {
        "source": f"someone/hf@{COMMIT}",
        "layout": "huggingface",
        "sha256": hashlib.sha256(content).hexdigest(),
        "crop_mode": "squash",
        "num_heads": 4,
        "variant": "hf",
    }


def test_a_sharded_repository_is_downloaded_whole(downloads: Downloads) -> None:
    """The index first, then every file that it names, of the revision asked for."""
    assert downloads.online["hf:someone/sharded@v2"]["layout"] == "huggingface"
    index = "/someone/sharded/resolve/v2/model.safetensors.index.json"
    assert any(index in line for line in downloads.requests)


def test_a_timm_repository_needs_no_preprocessor_file(downloads: Downloads) -> None:
    """It is not even asked for, so that timm's own cache is enough offline."""
    assert downloads.online["hf:someone/timm"]["num_heads"] == 3
    assert not any(
        "/timm/" in line and "preprocessor_config" in line for line in downloads.requests
    )


def test_what_is_in_the_cache_is_read_offline(downloads: Downloads) -> None:
    """The switch is honoured: the same results, and not one request."""
    for source in SOURCES[:3]:
        assert downloads.offline[source] == downloads.online[source]
    assert downloads.offline_requests == []


def test_offline_without_a_copy_says_what_to_do(downloads: Downloads) -> None:
    """Unset the switch, or bring the cache."""
    found = downloads.offline["hf:someone/never"]
    assert found["error"] == "CheckpointError"
    assert "HF_HUB_OFFLINE forbids to download it" in found["message"]
    assert "hf download someone/never" in found["message"]


@pytest.mark.parametrize("source", ABSENT)
def test_what_the_hub_does_not_have_is_told(source: str, downloads: Downloads) -> None:
    """Repository, revision, weights."""
    assert downloads.online[source]["error"] == "CheckpointError"
    assert ABSENT[source] in downloads.online[source]["message"]


def test_a_variants_own_repository_is_found(
    hub: Hub, tmp_path: Path, repositories: dict[str, Path]
) -> None:
    """`--weights hub`; what comes is checked against the variant like any file."""
    hub.repositories[get_variant("deit_ti").hub] = repositories["someone/timm"]
    found = load(["hub"], tmp_path, hub, variant="deit_ti")["hub"]
    assert "! depth: file 1, deit_tiny_distilled_patch16_224 12" in found["message"]
    assert any(get_variant("deit_ti").hub in line for line in hub.requests)


def test_an_endpoint_that_is_no_hub_is_named(tmp_path: Path) -> None:
    """A server that answers, but not as a hub does."""
    plain = Hub({"someone/hf": tmp_path}, commit="")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    server = serve(plain)
    found = load(["hf:someone/hf"], tmp_path / "home", plain)["hf:someone/hf"]
    server.shutdown()
    server.server_close()
    assert f"{plain.url} does not answer as a hub should" in found["message"]
    assert "HF_ENDPOINT" in found["message"]


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'vit-export\[hub\]'"):
        load_checkpoint("hf:someone/hf")


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/b c"])
def test_a_source_that_names_no_repository_is_wrong_usage(source: str) -> None:
    """Before anything is asked of the network."""
    with pytest.raises(UsageError, match="expected hf:OWNER/NAME"):
        load_checkpoint(source)


@pytest.mark.parametrize("variant", [None, get_variant("l32"), ViTConfig(variant="mine")])
def test_a_variant_without_a_repository_is_wrong_usage(variant: ViTConfig | None) -> None:
    """The message lists those that have one."""
    with pytest.raises(UsageError, match="Variants that have one: ti16"):
        fetch("hub", variant=variant)
