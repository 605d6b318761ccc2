"""``sinkprune push`` against a stand-in of the hub: what it sends, what it refuses, and what it never says."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from huggingface_hub import ModelCard, constants

from pruning.checkpoint import load
from pruning.cli import USER_ERROR, main
from pruning.export import ExportRequest, Facts
from pruning.export import export as write_export
from pruning.export.card import model_card
from pruning.files import machine_paths, without_folders
from pruning.settings import Export
from pruning.stages.folder import RunFolder
from pruning.store import Key, Store
from pruning.surgery import apply_plan
from tests.models import dit, run
from tests.plans import random_plan

TOKEN = "hf_OnlyForThisTest"
FACTS = {
    "title": "Slim digits",
    "base_model": "/home/somebody/models/digits",
    "licence": {"license": "apache-2.0"},
    "data": "uoft-cs/cifar10",
    "metrics": {
        "dense": {"FID": (3.5, None)},
        "recovered": {"FID": (3.9, [3.7, 4.1]), "parameters": (12, None)},
    },
    "recipe": "evaluate:\n  features: inception:/weights/pt_inception.pth\nrun_dir: /home/somebody/runs/q\n",
}


class Hub:
    """A hub of one user: repositories by name, each with its files, and every request that came.

    It answers what `huggingface_hub` asks when a folder is uploaded. Its answer to ``preupload`` says that files come
    within the commit, and not to a store beside it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.refusing = ""

    def put(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> None:
        self.repos[repo] = {"files": files, "private": private}

    def answer(
        self, method: str, path: str, body: bytes, token: str | None
    ) -> tuple[int, Any, dict[str, str]]:
        self.asked.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if self.refusing and self.refusing in path:
            return 403, {"error": "You have no right to write here"}, {}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "somebody", "orgs": []}, {}
        if path == "/api/repos/create":
            said = json.loads(body)
            repo = f"{said['organization']}/{said['name']}"
            self.put(repo, {".gitattributes": b""}, private=said.get("visibility") == "private")
            return 200, {"url": f"{self.url}/{repo}"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        repo, _, rest = path.removeprefix("/api/models/").partition("/")
        name, _, what = rest.partition("/")
        return self._of(f"{repo}/{name}", what, body)

    def _of(self, repo: str, what: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        known = self.repos[repo]
        files = known["files"]
        if not what:
            card = files.get("README.md", b"").decode()
            tags = ModelCard(card).data.tags if card else []
            siblings = [{"rfilename": name} for name in files]
            return 200, {"id": repo, "private": known["private"], "tags": tags, "siblings": siblings}, {}
        if what.startswith("tree/"):
            return (
                200,
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0"}
                    for name, data in files.items()
                ],
                {},
            )
        if what.startswith("preupload/"):
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}, {}
        if what.startswith("commit/"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                if entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40}, {}
        return 404, {"error": f"the stand-in knows no {what}"}, {}

    url = ""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            status, data, headers = found.answer(self.command, path, body, self.headers["Authorization"])
            text = json.dumps(data).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose stage ``export`` is done."""
    path = tmp_path_factory.mktemp("runs") / "slim"
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"name": "slim", "model": {}, "data": {}, "results": {}}))
    store, folder = Store(path.parent / ".store"), RunFolder(path)

    def work(place: Path) -> dict[str, Any]:
        model = apply_plan(dit(), random_plan(dit(), ("attention_heads", "ffn_channels"), 3))
        settings = Export(dtype="float32")
        write_export(ExportRequest(model, DDIMScheduler(), settings, Facts(**FACTS)), place / "diffusers")
        config = place / "diffusers" / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "/home/somebody/x"}))
        return {"seconds": 1.0}

    folder.attach("export", store.make(Key("export", {}, {}), work), store)
    return path


@pytest.fixture
def finished(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(exported.parent)
    return exported.name


def push(*words: str) -> int:
    return main(["push", *words, "--json"])


def test_a_push_makes_the_repository_and_what_is_there_loads(finished, hub, tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    assert push(finished, "--repo", "somebody/slim", "--private") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["url"] == f"{hub.url}/somebody/slim"
    assert told["created"]
    known = hub.repos["somebody/slim"]
    assert known["private"]
    there = known["files"]
    assert there.keys() - {".gitattributes"} == told["files"].keys()
    for name, data in there.items():
        place = tmp_path / "from-hub" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    again, before = (
        load(p) for p in (tmp_path / "from-hub/transformer", Path(finished, "export/diffusers/transformer"))
    )
    assert torch.equal(run(again), run(before))
    assert TOKEN not in caplog.text
    assert not any(
        TOKEN.encode() in path.read_bytes() for path in Path(finished).rglob("*") if path.is_file()
    )


def test_the_card_is_in_the_hubs_form_and_names_no_machine(finished, hub):
    assert push(finished, "--repo", "somebody/slim") == 0
    there = hub.repos["somebody/slim"]["files"]
    text = there["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "diffusers"
    assert front["datasets"] == ["uoft-cs/cifar10"]
    assert "base_model" not in front
    [metric, other] = front["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "fid", "value": 3.9, "name": "FID", "args": {"ci95": [3.7, 4.1]}}
    assert "args" not in other
    assert 'folder = "somebody/slim"' in text
    assert "features: inception:pt_inception.pth" in text
    assert b"somebody/models" not in b"".join(there.values())
    assert "_name_or_path" not in json.loads(there["scheduler/scheduler_config.json"])
    assert "_name_or_path" in Path(finished, "export/diffusers/scheduler/scheduler_config.json").read_text()


def test_a_dry_run_lays_everything_out_and_asks_nobody(finished, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(finished, "--repo", "somebody/slim", "--dry-run", "--license", "mit") == 0
    told = json.loads(capsys.readouterr().out)
    assert hub.asked == []
    assert not told["sent"]
    assert told["license"] == "mit"
    assert told["bytes"] == sum(told["files"].values())
    folder = Path(told["path"])
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == told[
        "files"
    ].keys()
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    assert main(["push", finished, "--repo", "somebody/slim", "--dry-run"]) == 0
    assert "would be sent" in capsys.readouterr().out


def test_an_earlier_push_is_brought_up_to_date_and_what_it_had_more_goes(finished, hub, capsys):
    assert push(finished, "--repo", "somebody/slim", "--private") == 0
    hub.repos["somebody/slim"]["files"]["transformer/old[1].safetensors"] = b"old"
    capsys.readouterr()
    assert push(finished, "--repo", "somebody/slim") == 0
    told = json.loads(capsys.readouterr().out)
    assert not told["created"]
    assert told["private"]
    assert told["removed"] == ["transformer/old[1].safetensors"]
    assert "transformer/old[1].safetensors" not in hub.repos["somebody/slim"]["files"]
    assert ".gitattributes" in hub.repos["somebody/slim"]["files"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert push(*words) == USER_ERROR
    return " ".join(capsys.readouterr().err.split())


def test_a_repository_with_other_content_is_left_alone(finished, hub, capsys):
    hub.put("somebody/slim", {"README.md": b"---\ntags: [cats]\n---\nMine", "weights.bin": b"1"})
    text = refused(capsys, finished, "--repo", "somebody/slim")
    assert "somebody/slim holds other content (README.md, weights.bin); nothing has been sent" in text
    assert hub.repos["somebody/slim"]["files"]["weights.bin"] == b"1"
    assert not any("commit" in asked for asked in hub.asked)


def test_what_shall_be_private_does_not_go_into_a_public_repository(finished, hub, capsys):
    hub.put("somebody/slim", {".gitattributes": b""})
    assert "is there and public, and --private was asked" in refused(
        capsys, finished, "--repo", "somebody/slim", "--private"
    )
    assert hub.repos["somebody/slim"]["files"].keys() == {".gitattributes"}


def test_without_a_token_nothing_is_asked(finished, hub, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token: `hf auth login`" in refused(capsys, finished, "--repo", "somebody/slim")
    assert hub.asked == []


def test_a_token_that_is_not_taken_is_said_and_not_shown(finished, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_Another")
    text = refused(capsys, finished, "--repo", "somebody/slim")
    assert f"checking the token at {hub.url}: " in text
    assert "(HTTP 401)" in text
    assert "hf_Another" not in text


@pytest.mark.parametrize(
    ("step", "said"), [("create", "making other/slim at"), ("commit", "sending the files to")]
)
def test_what_the_hub_refuses_is_one_message(finished, hub, capsys, step, said):
    hub.refusing = step
    text = refused(capsys, finished, "--repo", "other/slim")
    assert said in text
    assert "You have no right to write here" in text
    assert TOKEN not in text


def test_a_hub_that_is_not_there(finished, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "checking the token at http://127.0.0.1:9: ConnectError" in refused(
        capsys, finished, "--repo", "somebody/slim"
    )


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("slim", "a repository is OWNER/NAME"),
        ("a/b/c", "Repo id must be in the form"),
        ("a/b c", "alphanumeric"),
    ],
)
def test_a_name_that_no_repository_has(finished, capsys, repo, said):
    assert said in refused(capsys, finished, "--repo", repo, "--dry-run")


def test_what_is_no_finished_run_is_told_what_is_missing(finished, tmp_path, capsys):
    assert "no run directory (run.json)" in refused(capsys, str(tmp_path), "--repo", "a/b")
    (tmp_path / "run.json").write_text(json.dumps({"name": "r", "model": {}, "data": {}, "results": {}}))
    assert "stage 'export' has not been run" in refused(capsys, str(tmp_path), "--repo", "a/b")
    store = Store(tmp_path.parent / ".store")

    def work(place: Path) -> dict[str, Any]:
        (place / "x.onnx").write_text("x")
        return {"seconds": 1.0}

    RunFolder(tmp_path).attach("export", store.make(Key("export", {}, {}), work), store)
    assert "has no diffusers folder to publish" in refused(capsys, str(tmp_path), "--repo", "a/b")


def test_a_card_that_names_a_folder_of_this_machine_is_not_sent(finished, hub, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"name": "r", "model": {}, "data": {}, "results": {}}))
    store = Store(tmp_path.parent / ".store2")

    def work(place: Path) -> dict[str, Any]:
        (place / "diffusers").mkdir()
        (place / "diffusers" / "README.md").write_text(
            "---\ntags: [sinkprune]\n---\nMade in /home/me/work/runs.\n"
        )
        return {"seconds": 1.0}

    RunFolder(tmp_path).attach("export", store.make(Key("export", {}, {}), work), store)
    text = refused(capsys, str(tmp_path), "--repo", "a/b")
    assert "the card names places on this machine (/home/me/work/runs.)" in text
    assert hub.asked == []


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("/home/me/My Photos/", "My Photos"),
        ("~/models/dit", "dit"),
        ("inception:/weights/pt.pth", "inception:pt.pth"),
        ("file:///data/x.parquet", "x.parquet"),
        ("C:\\Users\\me\\dit", "dit"),
        ("a: /srv/x/y\nb: and/or", "a: y\nb: and/or"),
    ],
)
def test_a_path_becomes_its_name(text, bare):
    assert machine_paths(text)
    assert without_folders({"x": [text]}) == {"x": [bare]}
    assert machine_paths(bare) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/a/b",
        "someone/model",
        "FlopCounterMode / 2",
        "</s>",
        "models/terrain_cm",
        "±/-",
        "a/b/c",
        "",
    ],
)
def test_what_is_no_path_of_a_machine_stays(text):
    assert machine_paths(text) == []
    assert without_folders(text) == text


def test_no_card_names_a_folder(tmp_path):
    text = model_card(dit(), torch.float32, Facts(**FACTS), part="transformer", whole_pipeline=False)
    assert machine_paths(text) == []
    assert "copy of `digits`" in text
    assert "its licence holds for them: apache-2.0." in text
