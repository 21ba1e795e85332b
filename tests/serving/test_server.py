"""A run as a server: what clients of OpenAI's endpoints get, and that nothing that comes in ends it."""

from __future__ import annotations

import json
import random
import socket
import time

import httpx
import openai
import pytest

from coretrain.contract.sampling import Sampling
from coretrain.inference.generate import open_for_generation
from coretrain.serving.app import Limits
from coretrain.serving.run import bound, is_loopback, read_key
from coretrain.serving.stops import Stops
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.refusal import refused
from tests.support.serving import listening, served, write_run
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}
ASKED = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def place(run):
    with served(run, TorchTrainer) as server, listening(server) as address:
        yield address


@pytest.fixture
def client(place):
    return openai.OpenAI(base_url=f"{place}/v1", api_key="none", max_retries=0)


def post(place, path="/v1/chat/completions", **body):
    return httpx.post(place + path, json={"model": "small"} | body, timeout=60)


@pytest.mark.parametrize("name", STACKS)
def test_greedy_answers_are_generates(run, name):
    stack = open_for_generation(run, STACKS[name])
    prompts = [list(text.encode()) for text in ("one", "another prompt", "x")]
    right = [stack.generate([ids], 12, Sampling(0), (256,))[0] for ids in prompts]
    with served(run, STACKS[name]) as server, listening(server) as place:
        asked = {"max_tokens": 12, "temperature": 0, "return_token_ids": True}
        found = post(place, "/v1/completions", prompt=prompts, **asked).json()["choices"]
        assert [one["token_ids"] for one in found] == right
        assert [one["prompt_token_ids"] for one in found] == prompts
        assert [one["text"] for one in found] == [
            bytes(i for i in ids if i < 256).decode(errors="replace") for ids in right
        ]


def test_the_official_client_whole_and_streamed(client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"
    asked = {"model": "small", "messages": ASKED, "temperature": 0, "max_tokens": 9}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (14, 9, 23)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1


def test_seeds_and_several_choices(client):
    asked = {"model": "small", "messages": ASKED, "temperature": 1.0, "max_tokens": 9}
    three = client.chat.completions.create(**asked, seed=5, n=3)
    again = client.chat.completions.create(**asked, seed=5, n=3)
    assert [c.message.content for c in three.choices] == [c.message.content for c in again.choices]
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert len({c.message.content for c in three.choices}) == 3
    alone = client.chat.completions.create(**asked, seed=5)
    assert alone.choices[0].message.content == three.choices[0].message.content
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, seed=5, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == [c.message.content for c in three.choices]
    new = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(new) == 3, "without a seed each is another"


def test_log_probabilities_in_both_forms(client):
    asked = {"model": "small", "temperature": 0, "max_tokens": 5}
    chat = client.chat.completions.create(messages=ASKED, logprobs=True, top_logprobs=3, **asked).choices[0]
    assert len(chat.logprobs.content) == 5
    for token in chat.logprobs.content:
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert bytes(token.bytes).decode(errors="replace") == token.token
    text = client.completions.create(prompt="abc", echo=True, logprobs=2, **asked).choices[0]
    assert text.text.startswith("abc")
    assert text.logprobs.tokens[:3] == ["a", "b", "c"]
    assert text.logprobs.token_logprobs[0] is None
    assert max(text.logprobs.token_logprobs[1:]) < 0
    assert len(text.logprobs.tokens) == len(text.logprobs.text_offset) == 8
    only = client.completions.create(model="small", prompt="abc", echo=True, logprobs=0, max_tokens=0).choices[0]
    assert (only.text, only.logprobs.token_logprobs) == ("abc", text.logprobs.token_logprobs[:3])
    parts = list(client.completions.create(prompt="abc", echo=True, logprobs=2, stream=True, **asked))
    assert "".join(part.choices[0].text for part in parts) == text.text
    assert [t for part in parts for t in part.choices[0].logprobs.tokens] == text.logprobs.tokens


def test_stop_strings_are_never_handed_on(client):
    asked = {"model": "small", "prompt": "a text", "temperature": 1.5, "seed": 3, "max_tokens": 60}
    text = client.completions.create(**asked).choices[0].text
    stop = text[20:24]
    whole = client.completions.create(**asked, stop=[stop, "never"]).choices[0]
    assert (whole.text, whole.finish_reason) == (text[: text.index(stop)], "stop")
    parts = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.text
    assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("seed", range(20))
def test_stops_in_any_pieces(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=40))
    stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
    cut, given, at = Stops(stops), "", 0
    while at < len(text):
        step = rng.randint(1, 4)
        given += cut.push(text[at : at + step])
        at += step
    given += cut.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert given.startswith(text[: min(ends, default=len(text))][: len(given)])
    assert not any(stop in given for stop in stops)
    assert bool(ends) == cut.stopped
    if not ends:
        assert given == text


def test_a_run_without_a_template_answers_completions_alone(tmp_path):
    run = write_run(tmp_path / "plain", template=None)
    with served(run, TorchTrainer) as server, listening(server) as place:
        assert httpx.get(f"{place}/v1/models").json()["data"][0]["chat"] is False
        answer = post(place, model="plain", messages=ASKED)
        assert answer.status_code == 400
        assert "chat_template.jinja" in answer.json()["error"]["message"]
        assert post(place, "/v1/completions", model="plain", prompt="a", max_tokens=2).status_code == 200


WRONG = [
    (404, "model_not_found", {"model": "other", "messages": ASKED}),
    (400, "unsupported_parameter", {"messages": ASKED, "tools": [{"type": "function"}]}),
    (400, "unsupported_parameter", {"messages": ASKED, "logit_bias": {"5": 1}}),
    (400, "unsupported_parameter", {"messages": ASKED, "presence_penalty": 0.5}),
    (400, "unsupported_parameter", {"messages": ASKED, "response_format": {"type": "json_object"}}),
    (400, "unknown_parameter", {"messages": ASKED, "typo": 1}),
    (400, "invalid_value", {"messages": ASKED, "temperature": -1}),
    (400, "invalid_value", {"messages": ASKED, "temperature": "hot"}),
    (400, "invalid_value", {"messages": ASKED, "n": 0}),
    (400, "invalid_value", {"messages": ASKED, "seed": 2**70}),
    (400, "invalid_value", {"messages": []}),
    (400, "invalid_value", {"messages": [{"role": "robot", "content": "x"}]}),
    (400, "invalid_value", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    (400, "invalid_value", {"messages": ASKED, "stop": ["a"] * 9}),
    (400, None, {"messages": ASKED, "top_logprobs": 3}),
    (400, None, {"messages": ASKED, "stream_options": {"include_usage": True}}),
    (400, "request-too-long", {"messages": ASKED, "max_tokens": 90}),
    (400, "request-too-long", {"messages": [{"role": "user", "content": "long " * 99}]}),
]


@pytest.mark.parametrize(("status", "code", "body"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_cannot_be_done_is_refused_in_the_form_that_clients_read(place, status, code, body):
    for stream in (False, True):
        answer = post(place, **body, **({"stream": True} if stream else {}))
        if stream and "stream_options" in body:
            assert answer.status_code == 200
            continue
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["message"]


def test_what_says_nothing_is_taken(place):
    more = {"user": "me", "tools": [], "presence_penalty": 0, "logit_bias": {}, "metadata": {"a": "b"}, "n": None}
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}]
    one, two = (post(place, messages=m, max_tokens=3, temperature=0, **more).json() for m in (ASKED, parts))
    assert one["choices"][0]["message"]["content"] == two["choices"][0]["message"]["content"]


def test_other_paths_methods_and_kinds(place):
    assert httpx.get(f"{place}/v1/nothing").status_code == 404
    assert httpx.get(f"{place}/v1/completions").status_code == 405
    assert httpx.post(f"{place}/v1/completions", content=b"{}").status_code == 415
    assert httpx.get(f"{place}/../../etc/passwd").status_code == 404
    assert httpx.get(f"{place}/page.js/../app.py").status_code == 404
    assert "error" in httpx.get(f"{place}/v1/nothing").json()
    assert httpx.get(f"{place}/health").json()["status"] == "ok"


def test_pages_of_other_sites_and_names_of_other_hosts_are_refused(place):
    body, port = {"model": "small", "prompt": "a"}, place.rpartition(":")[2]
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert httpx.post(f"{place}/v1/completions", json=body, headers=headers).status_code == 403
    for headers in ({"Host": f"localhost:{port}"}, {"Origin": place}):
        assert httpx.post(f"{place}/v1/completions", json=body, headers=headers).status_code == 200
    answer = httpx.get(place)
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_a_key(run, tmp_path):
    with served(run, TorchTrainer, key="secret-key") as server, listening(server) as place:
        assert httpx.get(f"{place}/v1/models").status_code == 401
        assert httpx.get(f"{place}/v1/models", headers={"Authorization": "Bearer secret-ke"}).status_code == 401
        assert httpx.get(f"{place}/v1/models", headers={"Authorization": "Bearer secret-key"}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{place}/v1", api_key="x", max_retries=0).models.list()
        assert httpx.get(place).status_code == 200, "the page itself asks for the key"
    (tmp_path / "key").write_text("short\n")
    with refused("serving/key-unfit", "key"):
        read_key(tmp_path / "key", {})
    with refused("serving/key-unreadable", "none"):
        read_key(tmp_path / "none", {})
    with refused("serving/key-unfit", "TWINTRAIN_API_KEY"):
        read_key(None, {"TWINTRAIN_API_KEY": "two words here"})
    (tmp_path / "key").write_text("long-enough\n")
    assert read_key(tmp_path / "key", {"TWINTRAIN_API_KEY": "another-one"}) == "long-enough"
    assert (read_key(None, {}), read_key(None, {"TWINTRAIN_API_KEY": "long-enough"})) == ("", "long-enough")


def test_too_much_at_once_and_too_much_of_it(run):
    limits = Limits(body=2000, answer=16)
    with served(run, TorchTrainer, limits=limits, rows=1, waiting=1) as server, listening(server) as place:
        assert post(place, messages=[{"role": "user", "content": "x" * 3000}]).status_code == 413
        answer = post(place, messages=ASKED, n=3, max_tokens=4)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["type"] == "rate_limit_error"
        until = time.monotonic() + 20
        while server.engine.statistics().rows and time.monotonic() < until:
            time.sleep(0.01)
        assert post(place, messages=ASKED, max_tokens=4).status_code == 200
    with served(run, TorchTrainer, limits=Limits(seconds=1e-6)) as server, listening(server) as place:
        assert post(place, messages=ASKED, max_tokens=60).status_code == 504


def idle(engine, seconds=20.0):
    until = time.monotonic() + seconds
    while (told := engine.statistics()).rows or told.waiting:
        assert time.monotonic() < until, told
        time.sleep(0.01)
    return told


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(run, stream, monkeypatch):
    with served(run, TorchTrainer, rows=1) as server, listening(server) as place:
        plain = server.engine._step
        monkeypatch.setattr(server.engine, "_step", lambda: (time.sleep(0.05), plain()))
        before = server.engine.statistics().tokens
        with socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2]))) as sock:
            body = json.dumps({"model": "small", "prompt": "a", "max_tokens": 90, "stream": stream}).encode()
            kind = "Host: localhost\r\nContent-Type: application/json"
            head = f"POST /v1/completions HTTP/1.1\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            while server.engine.statistics().tokens < before + 3:
                time.sleep(0.01)
        assert idle(server.engine).tokens < before + 60


def test_a_thousand_malformed_requests_and_it_still_answers(place):
    rng = random.Random(0)
    good = json.dumps({"model": "small", "prompt": "abc", "max_tokens": 2, "temperature": 0, "logprobs": 1}).encode()
    odd = [
        b"", b"null", b"[]", b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe", b'{"model": NaN}', b'"' + b"x" * 5000,
        b'{"model":"small","prompt":"\\ud800","max_tokens":1}', b'{"model":"small","prompt":[[]],"max_tokens":1}',
        b'{"model":"small","prompt":[99999],"max_tokens":1}', b'{"model":"small","prompt":[],"max_tokens":1}',
        b'{"model":"small","prompt":"a","max_tokens":1e400}', b'{"model":"small","prompt":"a","n":true}',
        b'{"model":"small","prompt":"a","temperature":1e-300,"max_tokens":1}',
        b'{"model":["small"],"prompt":"a"}', b'{"model":"small","prompt":{"a":1}}', b'{"__proto__":1}',
    ]  # fmt: skip
    seen = set()
    with httpx.Client(base_url=place, timeout=60, headers={"Content-Type": "application/json"}) as client:
        for number in range(1000):
            body = bytearray(rng.choice(odd) if number % 3 == 0 else good)
            for _ in range(rng.randint(0, 4) if number >= len(odd) * 3 else 0):
                if body:
                    body[rng.randrange(len(body))] = rng.randrange(256)
            path = rng.choice(["/v1/completions", "/v1/completions", "/v1/chat/completions"])
            answer = client.post(path, content=bytes(body))
            seen.add(answer.status_code)
            assert answer.status_code in (200, 400, 404), (answer.status_code, bytes(body)[:200], answer.text)
            assert answer.status_code == 200 or answer.json()["error"]["message"]
    assert seen == {200, 400, 404}
    assert httpx.get(f"{place}/health").json()["status"] == "ok"
    assert post(place, messages=ASKED, max_tokens=2).status_code == 200


def test_places():
    with bound("127.0.0.1", 0) as one, refused("serving/port-taken", str(port := one.getsockname()[1])):  # noqa: SIM117
        with bound("127.0.0.1", port):
            pass
    with refused("serving/host-unknown", "no.such.host.invalid"), bound("no.such.host.invalid", 1):
        pass
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.1.2.3")] == [True] * 3 + [
        False
    ] * 2
