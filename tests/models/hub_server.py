"""A server on this machine that answers as the API of the Hugging Face hub does, as far as das3 uses it."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories are folders under `server.root`; every request is noted."""

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        self.server.asked.append(self.path)
        path = self.path.split("?")[0]
        for name in self.server.repositories:
            folder = self.server.root / name
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": f, "size": (folder / f).stat().st_size} for f in files]
                tree = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0"} for f in files]
                info = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
                info["private"] = name in self.server.private
                return self.send(json.dumps(tree if "/tree/" in path else info).encode(), body, {})
            if path.startswith(f"/{name}/resolve/"):
                file = folder / path.split("/", 5)[-1]
                if file.is_file():
                    data = file.read_bytes()
                    tag = hashlib.sha1(data).hexdigest()
                    return self.send(data, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def send(self, data, body, headers):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        status = {"Bearer write": 200, "Bearer read": 403}.get(self.headers.get("Authorization"), 401)
        if status != 200 or self.path.split("?")[0] == "/api/validate-yaml":
            return self.say({}, status)
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "shouldIgnore": False} for f in json.loads(body)["files"]]
            modes = ["lfs" if f["path"].endswith(".safetensors") else "regular" for f in files]
            return self.say({"files": [{**f, "uploadMode": mode} for f, mode in zip(files, modes, strict=True)]})
        if self.path.endswith("/info/lfs/objects/batch"):
            here = f"http://127.0.0.1:{self.server.server_port}"
            found = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{here}/lfs/{o['oid']}"}}} for o in found]
            return self.say({"transfer": "basic", "objects": actions})
        return self.commit(self.path.split("/api/models/")[1].split("/commit/")[0], body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        url = f"http://127.0.0.1:{self.server.server_port}/{name}"
        if name in self.server.repositories:
            return self.say({"error": "there is one", "url": url}, 409)
        self.server.repositories.append(name)
        (self.server.root / name).mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        return self.say({"url": url})

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/lfs/{hashlib.sha256(data).hexdigest()}"
        self.server.large[self.path.split("/")[-1]] = data
        self.say({})

    def commit(self, name, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                (self.server.root / name / value["path"]).write_bytes(base64.b64decode(value["content"]))
            if line["key"] == "lfsFile":
                (self.server.root / name / value["path"]).write_bytes(self.server.large[value["oid"]])
        url = f"http://127.0.0.1:{self.server.server_port}/{name}/commit/{COMMIT}"
        return self.say({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def say(self, values, status=200):
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serve(root, *repositories):
    """The server, with repositories that are folders under `root`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked, server.repositories = root, [], list(repositories)
    server.private, server.large = set(), {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
