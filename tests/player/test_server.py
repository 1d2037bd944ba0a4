"""The server: who may talk to it, what it answers, and that nothing a client does breaks it."""

import asyncio
import base64
import contextlib
import io
import json
import re
import time
import urllib.error
import urllib.request

import imageio.v3 as iio
import numpy as np
import psutil
import pytest
from PIL import Image
from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClosedError

from tests.player.serving import STRIPES, Client, serving, world_with_ends
from worldmodel.episodes.store import EpisodeStore
from worldmodel.player import access
from worldmodel.player.factory import SessionFactory
from worldmodel.player.protocol import MAX_MESSAGE_BYTES
from worldmodel.player.server import PlayServer


@pytest.fixture(scope="module")
def factory(world_run, tmp_path_factory):
    return SessionFactory(str(world_with_ends(world_run, tmp_path_factory.mktemp("worlds") / "endless", -50)))


@pytest.fixture
def server(factory):
    with serving(factory) as server:
        yield server


def get(server: PlayServer, path: str, **headers: str) -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, str(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, str(error.headers), error.read()


def page(server: PlayServer) -> str:
    return f"/?token={server.shared.token}"


def test_it_listens_on_this_machine_only(server):
    listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == server.port}
    assert listening == {"127.0.0.1"}


def test_a_port_in_use_is_said(server, factory):
    with (
        pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1 port {server.port}: .*; give another --port"),
        serving(factory, port=server.port),
    ):
        pass


def test_the_page_is_served_with_headers_that_allow_nothing_else(server):
    status, headers, body = get(server, page(server))
    assert status == 200
    assert b"play.js" in body
    assert "Content-Security-Policy: default-src 'self'" in headers
    for name in ("play.js", "play.css", "play.svg"):
        assert get(server, f"/{name}")[0] == 200
    assert b"http://" not in body.replace(b"http://www.w3.org", b"")  # nothing from elsewhere


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.7"])
def test_a_foreign_host_is_refused(server, host):
    status, _, body = get(server, page(server), Host=host)
    assert status in (400, 403)
    assert b"<script" not in body


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"]
)
def test_a_foreign_origin_is_refused(server, origin):
    assert get(server, page(server), Origin=origin)[0] == 403

    async def connect():
        with pytest.raises(HTTPClientError, match="403"):
            await Client.connect(server, Origin=origin)

    asyncio.run(connect())


def test_a_socket_for_a_foreign_host_or_with_a_wrong_token_is_refused(server):
    async def connect():
        with pytest.raises(HTTPClientError, match="403"):
            await Client.connect(server, Host="evil.example")
        for token in ("", "wrong", server.shared.token + "x", "%C3%A9"):
            with pytest.raises(HTTPClientError, match="403"):
                await Client.connect(server, token=token)
        own = await Client.connect(server, Origin=f"http://127.0.0.1:{server.port}")
        header, _ = await own.ask(do="start")
        assert header["status"] == 200, header

    asyncio.run(connect())


def test_what_has_no_token_or_no_page_is_refused(server):
    assert get(server, "/")[0] == 403
    assert b"open that address" in get(server, "/")[2]
    assert get(server, "/films/" + "x" * 22)[0] == 403
    assert get(server, f"/films/{'x' * 22}?token={server.shared.token}")[0] == 404
    for path in ("/../server.py", "/page/index.html", "/films/../../etc/passwd", "/%2e%2e/server.py"):
        assert get(server, f"{path}?token={server.shared.token}")[0] == 404


def test_a_name_in_capitals_is_the_one_that_a_browser_sends():
    assert not access.refusal("desktop-ab12:8000", "http://desktop-ab12:8000", "DESKTOP-AB12")
    assert access.refusal("desktop-ab13:8000", None, "DESKTOP-AB12")


def test_all_addresses_accept_numbers_but_no_foreign_names():
    assert access.refusal("10.0.0.7:80", None, "0.0.0.0") == ""
    assert access.refusal("localhost:80", "http://localhost:80", "127.0.0.1") == ""
    assert access.refusal("[::1]:80", None, "127.0.0.1") == ""
    assert access.refusal("box:80", "http://box:80", "box") == ""
    assert "expected the host 0.0.0.0" in access.refusal("evil.example", None, "0.0.0.0")
    assert [access.is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "box")] == [True] * 3 + [
        False
    ] * 2


def test_a_start_describes_the_session_and_steps_follow(server):
    async def play():
        client = await Client.connect(server)
        header, (frame,) = await client.ask(do="start", seed=1)
        assert frame.shape == (24, 24, 3)
        assert header["session"]["actions"] == ["left", "stay", "right"]
        assert header["session"]["mode"] == "dream"
        assert next(iter(header["session"]["worlds"])) == "endless"
        header, (frame,) = await client.ask(do="step", action="right")
        assert (header["status"], header["step"], header["end"]) == (200, 1, "")
        assert 0 <= header["termination_prob"] <= 1

    asyncio.run(play())


def test_wrong_requests_get_400_and_the_session_goes_on(server):
    async def play():
        client = await Client.connect(server)
        header, _ = await client.ask(do="step", action="left")
        assert (header["status"], header["error"]) == (400, "the first message must be a start, got a step")
        await client.ask(do="start", clip=999)
        for request in ("step", "film"):
            header, _ = await client.ask(do=request)
            assert (header["status"], header["error"]) == (400, f"the first message must be a start, got a {request}")
        await client.ask(do="start")
        header, pictures = await client.ask(do="step", action="lefd")
        assert header["status"] == 400
        assert header["error"] == ("unknown action 'lefd': expected one of left, stay, right; did you mean 'left'?")
        assert pictures == []
        wrong = [
            {"do": "fly"},
            {"do": ["step"]},
            {},
            {"do": "step", "action": ["left"]},
            {"do": "step", "action": {"a": 1}},
            {"do": "start", "seed": "x"},
            {"do": "start", "seed": None},
            {"do": "start", "temperature": float("nan")},
            {"do": "start", "clip": 10**30},
            {"do": "start", "world": "/etc"},
            {"do": "start", "world": ["x"]},
            {"do": "start", "picture": "AAAA"},
            {"do": "start", "picture": 7},
            {"do": "film", "kind": "../../x.gif"},
            {"do": "film", "kind": ["gif"]},
        ]
        for request in wrong:
            header, _ = await client.ask(**request)
            assert header["status"] == 400, (request, header)
        for raw in ("[]", "{", "1", "null", "[" * 5000):
            await client.socket.write_message(raw)
            assert (await client.receive())[0]["status"] == 400
        await client.socket.write_message(b"\xff\x00", binary=True)
        assert (await client.receive())[0]["status"] == 400
        header, _ = await client.ask(do="step", action="left")
        assert (header["status"], header["step"]) == (200, 1)

    asyncio.run(play())


def test_a_picture_is_a_start_and_a_huge_one_is_refused(server):
    def png(size: int) -> str:
        file = io.BytesIO()
        Image.new("RGB", (size, size), "red").save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    async def play():
        client = await Client.connect(server)
        assert (await client.ask(do="start", picture=png(24)))[0]["status"] == 200
        header, _ = await client.ask(do="start", picture=png(25))
        assert "must be (24, 24, 3)" in header["error"]
        header, _ = await client.ask(do="start", picture=png(2000))
        assert "2000×2000 pixels are too many" in header["error"]

    asyncio.run(play())


def test_an_oversized_message_closes_the_connection(server):
    async def play():
        client = await Client.connect(server)
        await client.ask(do="start")
        with contextlib.suppress(WebSocketClosedError):  # perhaps already while it is sent
            await client.socket.write_message("x" * (MAX_MESSAGE_BYTES + 1))
        assert await asyncio.wait_for(client.socket.read_message(), 30) is None

    asyncio.run(play())
    wait_until(lambda: not server.shared.playing)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_ten_clients_at_once_those_beyond_the_limit_are_refused_until_a_place_is_free(server):
    async def play():
        clients = [await Client.connect(server) for _ in range(10)]
        headers = [(await client.ask(do="start"))[0] for client in clients[:4]]
        assert [header["status"] for header in headers] == [200] * 4
        for client in clients[4:]:
            header, _ = await client.receive()
            assert header["status"] == 503
            assert "4 at once: close another page" in header["error"]
            assert await asyncio.wait_for(client.socket.read_message(), 30) is None
            assert client.socket.close_code == 1013
        clients[0].socket.close()
        while len(server.shared.playing) == 4:
            await asyncio.sleep(0.01)
        assert (await (await Client.connect(server)).ask(do="start"))[0]["status"] == 200

    asyncio.run(play())


def test_a_client_that_vanishes_in_the_middle_of_a_step_breaks_nothing(tmp_path):
    slow = SessionFactory(env="tests.tiny_world:Tiny-v0", env_kwargs={"pause": 0.3}, store=str(tmp_path / "store"))
    with serving(slow) as server:

        async def vanish():
            client = await Client.connect(server)
            await client.ask(do="start")
            await client.ask(do="step", action="forward")
            await client.socket.write_message(json.dumps({"do": "step", "action": "forward"}))
            client.socket.stream.close()  # without a goodbye

        async def play():
            client = await Client.connect(server)
            assert (await client.ask(do="start"))[0]["status"] == 200
            assert (await client.ask(do="step", action="forward"))[0]["step"] == 1

        asyncio.run(vanish())
        wait_until(lambda: not server.shared.playing)
        asyncio.run(play())
    assert [entry.steps for entry in EpisodeStore(tmp_path / "store").entries] == [2, 1]  # both kept, cut off
    assert all(entry.truncated for entry in EpisodeStore(tmp_path / "store").entries)


def test_a_store_is_recorded_by_one_player(tmp_path):
    with serving(SessionFactory(env=STRIPES, store=str(tmp_path / "store"))) as server:

        async def play():
            first, second = await Client.connect(server), await Client.connect(server)
            assert (await second.receive())[0]["status"] == 503
            header, _ = await first.ask(do="start")
            assert header["session"]["mode"] == "record"
            assert header["note"] == "recorded: 0 episodes, 0 frames"
            for _ in range(30):
                header, _ = await first.ask(do="step", action="right")
            assert (header["end"], header["note"]) == ("terminated", "recorded: 1 episodes, 31 frames")

        asyncio.run(play())


def test_films_are_fetched_with_the_token_until_the_page_is_closed(server):
    async def play() -> str:
        client = await Client.connect(server)
        await client.ask(do="start")
        await client.ask(do="step", action="right")
        for kind in ("mp4", "episode", "gif", "gif"):
            header, _ = await client.ask(do="film", kind=kind)
            assert header["status"] == 200
        assert len(server.shared.films) == 3
        path, fetch = f"/{header['film']}", asyncio.get_running_loop().run_in_executor
        status, headers, body = await fetch(None, get, server, f"{path}?token={server.shared.token}")
        assert status == 200
        assert "image/gif" in headers
        assert iio.imread(body, extension=".gif").shape[0] == 2
        assert (await fetch(None, get, server, path))[0] == 403
        client.socket.close()
        return path

    path = asyncio.run(play())
    wait_until(lambda: not server.shared.films)
    assert get(server, f"{path}?token={server.shared.token}")[0] == 404


def test_the_delay_and_the_memory_stay_flat(server):
    async def play():
        client, process, delays, sizes = await Client.connect(server), psutil.Process(), [], []
        await client.ask(do="start")
        for _ in range(400):
            started = time.perf_counter()
            header, _ = await client.ask(do="step", action="right")
            delays.append(time.perf_counter() - started)
            sizes.append(process.memory_info().rss)
        assert header["step"] == 400
        assert np.median(delays[300:]) < 1.5 * np.median(delays[100:200])
        assert sizes[-1] - sizes[100] < 20e6

    asyncio.run(play())


def test_pages_share_the_thread_and_the_event_loop_answers_meanwhile(tmp_path):
    slow = SessionFactory(env="tests.tiny_world:Tiny-v0", env_kwargs={"pause": 1.0})
    with serving(slow) as server:

        async def play():
            client = await Client.connect(server)
            await client.ask(do="start")
            await client.socket.write_message(json.dumps({"do": "step", "action": "forward"}))
            started = time.perf_counter()
            status = await asyncio.get_running_loop().run_in_executor(None, lambda: get(server, page(server))[0])
            assert status == 200
            assert time.perf_counter() - started < 0.8
            assert (await client.receive())[0]["step"] == 1

        asyncio.run(play())


def test_nobody_begins_to_play_while_the_server_closes(factory):
    async def play():
        server = PlayServer(factory)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        request = f"GET {{}} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{{}}\r\n"
        writer.write(request.format(page(server), "").encode())
        header = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", header)[1]))
        await server.close()
        upgrade = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        writer.write(request.format(page(server).replace("/?", "/play?"), upgrade).encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert b"all places are taken" in await asyncio.wait_for(reader.read(), 30)
        assert not server.shared.playing
        writer.close()

    asyncio.run(play())
