"""Servers of a judge with the bodies that vLLM and SGLang document; `transformers` computes underneath."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, object]  # status and JSON


@contextmanager
def answering(answer):
    """The URL of a server. answer: (path, body or None) -> (status, JSON or bytes), or with headers as a third."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def do_GET(self):
            self._answer(None)

        def _answer(self, body):
            status, content, *headers = answer(self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in dict(*headers, **{"content-length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class TransformersServer:
    """The endpoints of vLLM and SGLang that a RemoteScorer asks. label_ids: the classes of /classify."""

    def __init__(self, model, label_ids, max_model_len: int):
        self.model, self.label_ids, self.max_model_len = model, list(label_ids), max_model_len
        self.asked: list[str] = []

    def logits(self, ids):
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, -1].double()

    def __call__(self, path, body):
        self.asked.append(path)
        if path == "/v1/models":
            return 200, {"data": [{"id": "served", "max_model_len": self.max_model_len}]}
        assert body["model"] == "served"
        if path == "/classify" and "input_ids" in body:  # SGLang
            rows = [self.logits(ids)[self.label_ids].tolist() for ids in body["input_ids"]]
            return 200, [{"embedding": row, "meta_info": {}} for row in rows]
        if path == "/classify":
            rows = [self.logits(ids)[self.label_ids] for ids in body["input"]]
            if body.get("use_activation", True):
                rows = [row.softmax(0) for row in rows]
            data = [
                {
                    "index": at,
                    "label": "AB"[int(row.argmax())],
                    "probs": row.tolist(),
                    "num_classes": 2,
                }
                for at, row in enumerate(rows)
            ]
            return 200, {"object": "list", "data": data[::-1]}  # the index counts, not the place
        assert body["apply_softmax"] and not body["item_first"]
        labels = body["label_token_ids"]
        rows = [self.logits(body["query"] + item)[labels].softmax(0) for item in body["items"]]
        if path == "/v1/score":  # SGLang
            return 200, {"scores": [row.tolist() for row in rows], "object": "scoring"}
        assert path == "/generative_scoring" and body["add_special_tokens"] is False
        data = [
            {"index": at, "object": "score", "score": float(row[0].float())}
            for at, row in enumerate(rows)
        ]
        return 200, {"object": "list", "data": data}
